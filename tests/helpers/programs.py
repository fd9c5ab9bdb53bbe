"""Counts what JAX compiles."""

import jax


class count_compilations:  # noqa: N801
    """The names of what JAX compiles inside of the block."""

    def __enter__(self):
        self.names = []
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        return self.names

    def _listen(self, event, duration, **details):
        if event == "/jax/core/compile/backend_compile_duration":
            self.names.append(details.get("fun_name", "?"))

    def __exit__(self, *_):
        jax.monitoring.unregister_event_duration_listener(self._listen)
