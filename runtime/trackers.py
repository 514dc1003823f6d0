"""TensorBoard and Weights & Biases: they get each row of metrics.jsonl, and each sample as text."""

from pathlib import Path

from config import at_end


class Trackers:
    """Those of the two that a run asks for. ValueError if the package of one is not installed.

    folder: where TensorBoard's files go. run: what wandb.init() gets: project, name and config, which are the
    settings that W&B shows. None for what is off.
    """

    def __init__(self, folder: Path | None, run: dict | None):
        self.tensorboard = open_tensorboard(folder) if folder else None
        self.wandb = open_wandb(run) if run else None

    def numbers(self, row: dict) -> None:
        """Send the numbers of a row at its step."""
        values = {key: value for key, value in row.items() if key != "step"}
        if self.tensorboard:
            for key, value in values.items():
                self.tensorboard.add_scalar(key, value, row["step"])
        if self.wandb:
            self.wandb.log(values, step=row["step"])

    def text(self, step: int, text: str) -> None:
        """Send a sample."""
        if self.tensorboard:  # it shows Markdown, where four blanks make a block of code
            code = "".join(f"    {line}\n" for line in text.split("\n"))
            self.tensorboard.add_text("sample", code, step)
        if self.wandb:
            self.wandb.log({"sample": text}, step=step)

    def close(self) -> None:
        """End W&B's run. TensorBoard's writer is closed at exit."""
        if self.wandb:
            self.wandb.finish()


def open_tensorboard(folder: Path):
    """A TensorBoard SummaryWriter for the run's folder. ValueError if the package is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ValueError("--tensorboard=True needs what is not installed: pip install tensorboard") from None
    writer = SummaryWriter(str(folder))
    at_end(writer.close)  # it writes in the background: lose nothing after Ctrl-C
    return writer


def open_wandb(run: dict):
    """Start a W&B run and return the wandb module. ValueError if the package is missing."""
    try:
        import wandb
    except ImportError:
        raise ValueError("--wandb_log=True needs what is not installed: pip install wandb") from None
    wandb.init(**run)
    return wandb
