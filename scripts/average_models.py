"""The mean of the weights of models of one recipe, as a model: what their errors have not in common becomes less.

    python scripts/average_models.py runs/compact/model runs/compact_final/model -o runs/averaged
        [--reference keep_near_cloud=10 keep_clear=12]

All must descend from one training: weights of unrelated ones have no meaningful mean. A model that is named twice
counts twice. Settings are those of the first model, with `--reference` but for options of its reference network
that have no weights; `training.json` is that of the last one, with those of the others under `averaged_with`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from declouder import CloudRemovalPipeline
from declouder.model_folder import NETWORKS, RECORD


def main() -> None:
    """Average and write."""
    parser = argparse.ArgumentParser(description="Average the weights of models.")
    parser.add_argument("models", type=Path, nargs="+", help="model folders")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument(
        "--reference",
        metavar="OPTION=NUMBER",
        nargs="+",
        default=[],
        help="options of the reference network, set anew",
    )
    arguments = parser.parse_args()
    if arguments.output.exists():
        raise SystemExit(f"{arguments.output} exists; choose another --output")
    pipelines = [CloudRemovalPipeline.from_pretrained(folder).to(torch.float32) for folder in arguments.models]
    for name in NETWORKS:
        states = [getattr(pipeline, name).state_dict() for pipeline in pipelines]
        first = states[0]
        for folder, state in zip(arguments.models, states, strict=True):
            if {key: value.shape for key, value in state.items()} != {key: v.shape for key, v in first.items()}:
                raise SystemExit(f"{folder}/{name} is another network than that of {arguments.models[0]}")
        mean = {key: torch.stack([state[key] for state in states]).mean(0) for key in first}
        getattr(pipelines[0], name).load_state_dict(mean)
    if arguments.reference:
        network = pipelines[0].reference
        # Not from_config, which keeps the default of what a folder's own config did not name.
        values = {key: value for key, value in network.config.items() if not key.startswith("_")}
        for given in arguments.reference:
            option, _, number = given.partition("=")
            kind = type(values.get(option))
            try:
                if kind not in (int, float):
                    raise ValueError
                values[option] = kind(number)
            except ValueError:
                told = f"--reference has {given!r}; give a number's option, as keep_near_cloud=10"
                raise SystemExit(told) from None
        changed = type(network)(**values)
        changed.load_state_dict(network.state_dict())
        pipelines[0].register_modules(reference=changed)
    pipelines[0].save_pretrained(arguments.output)
    write_record(arguments.models, arguments.output)
    print(f"wrote {arguments.output}: the mean of {len(pipelines)} models")


def write_record(models: list[Path], output: Path) -> None:
    """Keep what is known of how the models were trained, once of each however often it is named."""
    found = [folder / RECORD for folder in dict.fromkeys(models) if (folder / RECORD).exists()]
    records = [json.loads(path.read_text(encoding="utf-8")) for path in found]
    if records:
        record = {**records[-1], "averaged_with": records[:-1]}
        (output / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
