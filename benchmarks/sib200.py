"""SIB-200 with the embedded pair: hand-overs x seeds, as runs that `layerbridge compare` puts in one table.

Trains on English rows, evaluates in the recipe's 27 languages on the test split. A run that is finished is kept, so a
stopped call goes on where it was.

    python -m benchmarks.sib200 --data path/to/sib200 --out runs/sib200-table
"""

import argparse
from pathlib import Path

from layerbridge.config import load_recipe
from layerbridge.evaluation.compare import comparison
from layerbridge.evaluation.predict import evaluate_run
from layerbridge.evaluation.render import to_markdown
from layerbridge.training.run import read_record
from layerbridge.training.train import train

RECIPE = Path(__file__).parent.parent / "recipes" / "sib200.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder of SIB-200; by default the hub set")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--fusions", default="last_layer,global_softmax,transformer_softmax")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", default="score", help="score, generate or both, with a comma")
    args = parser.parse_args()
    results = []
    for seed in range(args.seeds):
        for fusion in args.fusions.split(","):
            folder = args.out / f"{fusion}-{seed}"
            overrides = [f"name={fusion}", f"fusion={fusion}", f"training.seed={seed}"]
            overrides.append(f"evaluation.methods=[{args.methods}]")
            overrides += [f"task.data={args.data}"] if args.data else []
            if read_record(folder).get("status") != "finished":
                train(load_recipe(RECIPE, overrides), folder, progress=False)
            results.append(evaluate_run(folder))
            print(fusion, seed, results[-1].averages("score").model_dump())
    for method in args.methods.split(","):
        table = to_markdown(comparison(results, method))
        print(table)
        (args.out / f"{method}.md").write_text(table + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
