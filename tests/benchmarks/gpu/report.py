"""Rows of results: one JSON file, and tables."""

import gc
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch

from audiodiff_core.training.cost import peak_flops

GIB = 2**30


class Report:
    """Results of one device.

    The file is written after each row, so that an interrupted run keeps its rows.

    Args:
        file: The results file.
        device: The torch device.

    Attributes:
        device: The torch device.
        peak: Dense bf16 peak of the GPU in FLOP/s, or None if it is unknown.
    """

    def __init__(self, file: Path, device: str) -> None:
        self.device = device
        self._file = file
        self._on_gpu = torch.device(device).type == "cuda"
        name = torch.cuda.get_device_name(device) if self._on_gpu else "cpu"
        self.peak = peak_flops(name)
        self._machine = {
            "device": name,
            "bf16_peak_tflops": None if self.peak is None else self.peak / 1e12,
            "host_threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version() if self._on_gpu else None,
            "diffusers": diffusers.__version__,
        }
        self._rows: list[dict[str, Any]] = []
        file.parent.mkdir(parents=True, exist_ok=True)

    def measure(self, section: str, labels: Mapping[str, Any], measurement: Callable[[], Mapping[str, Any]]) -> None:
        """Add the row of a measurement. If it fails, the row holds the reason.

        Args:
            section: Section of the row.
            labels: What is measured.
            measurement: Function that returns the measures by name.
        """
        self._release()
        try:
            measures = dict(measurement())
        except Exception as error:
            reason = str(error).partition("\n")[0]
            measures = {"failed": f"{type(error).__name__}: {reason}"}
        else:
            if self._on_gpu:
                measures["peak_gib"] = torch.cuda.max_memory_allocated(self.device) / GIB
        row = {"section": section, **labels, **measures}
        self._rows.append(row)
        print("  ".join(f"{key}={_text(value)}" for key, value in row.items()), flush=True)
        self._file.write_text(json.dumps({**self._machine, "rows": self._rows}, indent=1) + "\n")

    def share(self, flops_per_item: float, items_per_s: float) -> float | None:
        """Return the fraction of the bf16 peak, or None if the peak is unknown."""
        return None if self.peak is None else flops_per_item * items_per_s / self.peak

    def print_tables(self) -> None:
        """Print the machine, and one table per section."""
        print("\n" + ", ".join(f"{key} {_text(value)}" for key, value in self._machine.items()))
        for section in dict.fromkeys(row["section"] for row in self._rows):
            rows = [row for row in self._rows if row["section"] == section]
            columns = [key for key in dict.fromkeys(key for row in rows for key in row) if key != "section"]
            cells = [columns, *([_text(row.get(column)) for column in columns] for row in rows)]
            widths = [max(len(line[at]) for line in cells) for at in range(len(columns))]
            print(f"\n{section}")
            for line in cells:
                print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))

    def _release(self) -> None:
        """Free the memory of earlier measurements, and forget compiled networks."""
        torch.compiler.reset()
        gc.collect()
        if self._on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
