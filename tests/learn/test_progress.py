"""The progress bar: in a notebook without ipywidgets it is text, and importing it warns of nothing."""

import subprocess
import sys

NOTEBOOK = """
import importlib.machinery, sys, warnings
shown = []
warnings.showwarning = lambda message, *_: shown.append(str(message))
from tqdm import TqdmWarning, tqdm

class Loader:  # what tqdm does in such a notebook
    def find_spec(self, name, path=None, target=None):
        return importlib.machinery.ModuleSpec(name, self) if name == "tqdm.autonotebook" else None
    def create_module(self, spec):
        return None
    def exec_module(self, module):
        warnings.warn("IProgress not found. Please update jupyter and ipywidgets.", TqdmWarning)
        module.tqdm, module.trange = tqdm, None
sys.meta_path.insert(0, Loader())
import jax_maddness.learn.progress as progress
assert not shown, shown
with progress.Progress(True) as bar:
    pass
"""


def test_no_warning_in_a_notebook_without_widgets():
    run = subprocess.run([sys.executable, "-W", "always", "-c", NOTEBOOK], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
