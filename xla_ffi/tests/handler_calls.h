// Calls a handler as XLA does. Dimensions and contents lie in memory of exactly their size, so that AddressSanitizer
// notices what a handler reads or writes beside them. Include it in one file of a program: it defines the types that
// XLA's C API leaves open.
#ifndef JAX_MADDNESS_TESTS_HANDLER_CALLS_H_
#define JAX_MADDNESS_TESTS_HANDLER_CALLS_H_

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "xla_ffi/handlers/handlers.h"
#include "xla_ffi/tests/testing.h"

struct XLA_FFI_Error {
  std::string message;
};

// FFI API 0.4 (jaxlib 0.11.1) renamed what a caller has to name. Handlers name none of it.
#if XLA_FFI_API_MAJOR > 0 || XLA_FFI_API_MINOR >= 4
#define JAX_MADDNESS_CONTEXT XLA_FFI_InvokeContext
#define JAX_MADDNESS_READ_ERROR XLA_FFI_Error_GetDetails
inline void read_error(XLA_FFI_Error_GetDetails_Args* args) {
  args->message = args->error->message.c_str();
  args->errc = XLA_FFI_Error_Code_INVALID_ARGUMENT;
}
#else
#define JAX_MADDNESS_CONTEXT XLA_FFI_ExecutionContext
#define JAX_MADDNESS_READ_ERROR XLA_FFI_Error_GetMessage
inline void read_error(XLA_FFI_Error_GetMessage_Args* args) { args->message = args->error->message.c_str(); }
#endif

// A pool of threads, as XLA has one; null stands for a process without one.
struct JAX_MADDNESS_CONTEXT {
  explicit JAX_MADDNESS_CONTEXT(int threads) {
    for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { work(); });
  }
  ~JAX_MADDNESS_CONTEXT() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      is_closed_ = true;
    }
    changed_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  void schedule(XLA_FFI_Task* task, void* data) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      tasks_.emplace_back(task, data);
    }
    changed_.notify_one();
  }
  int64_t size() const { return static_cast<int64_t>(threads_.size()); }

 private:
  void work() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      changed_.wait(lock, [this] { return is_closed_ || !tasks_.empty(); });
      if (tasks_.empty()) return;
      const auto [task, data] = tasks_.front();
      tasks_.pop_front();
      lock.unlock();
      task(data);
      lock.lock();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::pair<XLA_FFI_Task*, void*>> tasks_;
  std::vector<std::thread> threads_;
  bool is_closed_ = false;
};

namespace jax_maddness::testing {

using Pool = JAX_MADDNESS_CONTEXT;

struct Array {
  XLA_FFI_DataType type;
  std::vector<int64_t> dims;
  std::vector<char> contents = {};  // zeros where it is empty

  bool is_empty() const { return std::find(dims.begin(), dims.end(), 0) != dims.end(); }

  // Of arrays that have room in memory.
  size_t bytes() const {
    if (is_empty()) return 0;
    size_t count = width();
    for (const int64_t dim : dims) count *= static_cast<size_t>(dim);
    return count;
  }

  size_t width() const {
    switch (type) {
      case XLA_FFI_DataType_PRED:
      case XLA_FFI_DataType_S8:
      case XLA_FFI_DataType_U8:
        return 1;
      case XLA_FFI_DataType_S16:
      case XLA_FFI_DataType_F16:
      case XLA_FFI_DataType_BF16:
        return 2;
      case XLA_FFI_DataType_S64:
      case XLA_FFI_DataType_F64:
        return 8;
      default:
        return 4;
    }
  }
};

struct Call {
  XLA_FFI_Handler* handler;
  const char* name;
  std::vector<Array> args, results;
  std::string activation = {};  // the attribute of this name; none if it is empty
};

struct Outcome {
  std::string error;  // empty if the handler succeeds
  std::vector<std::vector<char>> results;
};

// The arrays of a call, in the form in which XLA passes them. `fill` is what results hold before the call.
class Buffers {
 public:
  explicit Buffers(const std::vector<Array>& arrays, char fill = 0) : arrays_(arrays), buffers_(arrays.size()) {
    for (size_t i = 0; i < arrays.size(); ++i) {
      const Array& array = arrays[i];
      const size_t bytes = array.bytes();
      contents_.emplace_back(new char[bytes]);
      std::fill_n(contents_.back().get(), bytes, fill);
      if (!array.contents.empty()) std::copy_n(array.contents.data(), bytes, contents_.back().get());
      dims_.emplace_back(new int64_t[array.dims.size()]);
      std::copy(array.dims.begin(), array.dims.end(), dims_.back().get());
      buffers_[i].struct_size = XLA_FFI_Buffer_STRUCT_SIZE;
      buffers_[i].dtype = array.type;
      buffers_[i].data = contents_.back().get();
      buffers_[i].rank = static_cast<int64_t>(array.dims.size());
      buffers_[i].dims = dims_.back().get();
      pointers_.push_back(&buffers_[i]);
    }
  }

  void** pointers() { return pointers_.data(); }
  int64_t size() const { return static_cast<int64_t>(pointers_.size()); }
  std::vector<char> contents(size_t i) const { return {contents_[i].get(), contents_[i].get() + arrays_[i].bytes()}; }

 private:
  const std::vector<Array>& arrays_;
  std::vector<XLA_FFI_Buffer> buffers_;
  std::vector<std::unique_ptr<char[]>> contents_;
  std::vector<std::unique_ptr<int64_t[]>> dims_;
  std::vector<void*> pointers_;
};

inline XLA_FFI_Error* create_error(XLA_FFI_Error_Create_Args* args) { return new XLA_FFI_Error{args->message}; }
inline void destroy_error(XLA_FFI_Error_Destroy_Args* args) { delete args->error; }
inline XLA_FFI_Error* schedule(XLA_FFI_ThreadPool_Schedule_Args* args) {
  if (args->ctx == nullptr) return new XLA_FFI_Error{"no pool"};
  args->ctx->schedule(args->task, args->data);
  return nullptr;
}
inline XLA_FFI_Error* num_threads(XLA_FFI_ThreadPool_NumThreads_Args* args) {
  if (args->ctx == nullptr) return new XLA_FFI_Error{"no pool"};
  *args->num_threads = args->ctx->size();
  return nullptr;
}

inline XLA_FFI_Api runtime() {
  XLA_FFI_Api api = {};
  api.struct_size = sizeof(api);
  api.api_version.struct_size = XLA_FFI_Api_Version_STRUCT_SIZE;
  api.api_version.major_version = XLA_FFI_API_MAJOR;
  api.api_version.minor_version = XLA_FFI_API_MINOR;
  api.XLA_FFI_Error_Create = create_error;
  api.JAX_MADDNESS_READ_ERROR = read_error;
  api.XLA_FFI_Error_Destroy = destroy_error;
  api.XLA_FFI_ThreadPool_Schedule = schedule;
  api.XLA_FFI_ThreadPool_NumThreads = num_threads;
  return api;
}

inline Outcome run(const Call& call, Pool* pool = nullptr, char fill = 0) {
  static const XLA_FFI_Api api = runtime();
  Buffers args(call.args), results(call.results, fill);
  std::vector<XLA_FFI_ArgType> arg_types(call.args.size(), XLA_FFI_ArgType_BUFFER);
  std::vector<XLA_FFI_RetType> result_types(call.results.size(), XLA_FFI_RetType_BUFFER);
  XLA_FFI_CallFrame frame = {};
  frame.struct_size = XLA_FFI_CallFrame_STRUCT_SIZE;
  frame.api = &api;
  frame.ctx = pool;
  frame.stage = XLA_FFI_ExecutionStage_EXECUTE;
  frame.args.struct_size = XLA_FFI_Args_STRUCT_SIZE;
  frame.args.size = args.size();
  frame.args.types = arg_types.data();
  frame.args.args = args.pointers();
  frame.rets.struct_size = XLA_FFI_Rets_STRUCT_SIZE;
  frame.rets.size = results.size();
  frame.rets.types = result_types.data();
  frame.rets.rets = results.pointers();
  frame.attrs.struct_size = XLA_FFI_Attrs_STRUCT_SIZE;
  const auto span = [](const std::string& text) { return XLA_FFI_ByteSpan{text.data(), text.size()}; };
  static const std::string activation = "activation";
  XLA_FFI_ByteSpan name = span(activation), value = span(call.activation);
  XLA_FFI_ByteSpan* names[] = {&name};
  XLA_FFI_AttrType types[] = {XLA_FFI_AttrType_STRING};
  void* values[] = {&value};
  if (!call.activation.empty()) {
    frame.attrs.size = 1;
    frame.attrs.names = names;
    frame.attrs.types = types;
    frame.attrs.attrs = values;
  }
  Outcome outcome;
  const std::unique_ptr<XLA_FFI_Error> error(call.handler(&frame));
  if (error) outcome.error = error->message;
  for (size_t i = 0; i < call.results.size(); ++i) outcome.results.push_back(results.contents(i));
  return outcome;
}

}  // namespace jax_maddness::testing

#endif  // JAX_MADDNESS_TESTS_HANDLER_CALLS_H_
