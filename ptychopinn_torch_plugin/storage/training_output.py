"""What a training run has left in its output folder, however it ended."""

from __future__ import annotations

from pathlib import Path

from ..errors import ModelFileError
from .model_file import MODEL_FILE, read_model_header
from .written_files import WrittenFiles

RESUME_FILE = 'resume.safetensors'
"""State of an unfinished training, from which the next one in the same folder resumes."""


class TrainingOutput:
    """The output folder of one training run, compared with what it held before the run."""

    def __init__(self, folder: Path) -> None:
        """Remember which model and which resume state are in ``folder`` now, before the run begins."""
        self.model_file = Path(folder).absolute() / MODEL_FILE
        self._resume_file = self.model_file.with_name(RESUME_FILE)
        self._had_model = self.model_file.exists()
        self._written = WrittenFiles()
        self._written.watch(self.model_file, self._resume_file)

    def has_model(self) -> bool:
        """Return whether this run has written a model."""
        return self.model_file in self._written.paths()

    def can_resume(self) -> bool:
        """Return whether this run has written a state from which the next run resumes."""
        return self._resume_file in self._written.paths()

    def describe(self) -> str:
        """Return, in one or two sentences, which model exists now and whether the training can be resumed."""
        if self.has_model():
            try:
                epochs = len(read_model_header(self.model_file).history)
            except ModelFileError as error:
                return f'The model of this run cannot be read: {error}'
            model = f'The best model of {epochs} epochs is {self.model_file}.'
            if epochs == 0:
                model = f'No epoch was finished; the model as it was when the run ended is {self.model_file}.'
        elif self._had_model:
            model = f'This run wrote no model; {self.model_file} is that of an earlier run.'
        else:
            model = 'No model was written.'
        return f'{model} Training into the same folder resumes from there.' if self.can_resume() else model
