"""Draw all figures and tables again from the records in `data/results`; nothing is measured."""

from pathlib import Path

from natrig_nb.report.figures import draw_all, draw_comparison
from natrig_nb.report.tables import read_run, write_tables
from natrig_nb.report.zoo_figures import draw_zoo
from natrig_nb.runs.experiments.zoo import write_zoo_tables
from natrig_nb.runs.results import read_results

ROOT = Path(__file__).resolve().parent.parent
WALKTHROUGHS = ("portraits", "faces", "diffusion")
COMPARISONS = ("grid", "grid-faces")


def main() -> None:
    """Write `figures/` and the tables beside the records."""
    for name in WALKTHROUGHS:
        drawn = draw_all(ROOT / "data/results" / name, ROOT / "figures" / name)
        print(f"figures/{name}: {', '.join(drawn.paths)}")
    for name in COMPARISONS:
        records = ROOT / "data/results" / name
        tables = write_tables(records)
        drawn = draw_comparison(read_run(records, "grid"), ROOT / "figures" / name)
        print(f"figures/{name}: {', '.join(drawn)}; {len(tables)} tables")
    zoo = ROOT / "data/results/zoo"
    if zoo.is_dir():
        further = zoo / "fresh.parquet"
        fresh = read_results(further) if further.is_file() else None
        write_zoo_tables(read_results(zoo / "zoo.parquet"), zoo, fresh)
        print(f"figures/zoo: {', '.join(draw_zoo(zoo, ROOT / 'figures/zoo'))}")


if __name__ == "__main__":
    main()
