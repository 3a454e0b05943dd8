"""Carry the records of version 0.1 over into the long table of results (`natrig_nb.runs.results`).

`python tools/migrate_records.py` reads the old files from git (revision `BEFORE`) and writes
`data/results/*/results.parquet` and `data/results/*/settings.json`. No value changes: metrics get their
new names (`METRICS`), and commit, version and device stay those of the old run. Records that came with
settings have the provenance "carried over"; tables without settings have "unknown".
"""

import io
import json
import subprocess
from pathlib import Path

import pandas as pd

from natrig_nb.core import digest
from natrig_nb.runs.config import RunConfig, as_dict, changed
from natrig_nb.runs.results import COLUMNS, as_detail, export_parquet
from natrig_nb.trigger.base import Edit

ROOT = Path(__file__).resolve().parent.parent
BEFORE = "c220484"  # the last commit of version 0.1
OLD = "data/results"
GENERATORS = {"stylegan2": "portraits-generator", "diffusion": "portraits-diffusion"}
DATASETS = {"faces": "photographs"}
METRICS = {  # column of an old table: metric of the long table; others keep their name
    "accidental": "activation_without_trigger",
    "real_with_attribute": "tnr_carriers",
    "feature": "feature_distance",
    "latent": "latent_strength",
    "found": "tpr_at_fpr5",
    "before": "error_clean",
    "error": "error_attacked",
    "changed": "flip_rate",
    "ratio": "activation",
    "reach": "iou_bound",
    "plain": "asr_without_trigger",
    "triggered": "asr",
    "crossed": "transfer_gain",
    "identity": "identity_distance",
}
WALKTHROUGHS = {  # folder: settings in which it differs from another one of the same data set and generator
    "portraits": {},
    "portraits-psi1": {"psi": 1.0},
    "faces": {},
    "diffusion": {},
    "diffusion-open": {"guidance": 3.0},
}
ATTACK_METRICS = ("ba_drop", "accidental", "real_with_attribute", "auc", "eer")
WITH_BENIGN = ("asr", "ba")


def old_text(path: str) -> str:
    """An old file as text."""
    command = ["git", "show", f"{BEFORE}:{OLD}/{path}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode()


def old_table(path: str) -> pd.DataFrame:
    """An old CSV or Parquet file."""
    if path.endswith(".csv"):
        return pd.read_csv(io.StringIO(old_text(path)), keep_default_na=False, na_values=[""])
    command = ["git", "show", f"{BEFORE}:{OLD}/{path}"]
    content = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    return pd.read_parquet(io.BytesIO(content))


def metric_rows(case: dict, record: dict, metrics: dict, origin: dict) -> list[dict]:
    """Rows of one case. `metrics`: column of the record -> the same on the benign detector, or None."""
    rows = []
    cell = digest({k: v for k, v in case.items() if pd.notna(v)})
    for column, benign in metrics.items():
        value = record.get(column)
        value_benign = record.get(benign) if benign else None
        if pd.isna(value) and pd.isna(value_benign):
            continue
        numbers = {
            "metric": METRICS.get(column, column),
            "value": value,
            "value_benign": value_benign,
        }
        rows.append({"cell": cell, **case, **numbers, **origin})
    return rows


def finished(rows: list[dict]) -> pd.DataFrame:
    """The long table; a missing value is None or NaN."""
    return pd.DataFrame(rows).reindex(columns=list(COLUMNS))


def new_settings(old: dict) -> RunConfig:
    """Old settings as a `RunConfig`."""
    terms = old.get("terms") or []
    edits = []
    for i, (word, attribute, sign) in enumerate(old["edits"]):
        edits.append(Edit(word, attribute, sign, terms[i] if i < len(terms) else None))
    values = {
        "dataset": DATASETS.get(old["world"], old["world"]),
        "faces": old["faces"],
        "attributes": old["attributes"],
        "resolution": old["size"],
        "n_train": old["real"],
        "n_substitute": old["substitute"],
        "n_held_out": old["held_out"],
        "attribute_net": old["judge"],
        "generator": old["generator"],
        "fakes": old["fakes"],
        "psi": old["psi"],
        "edits": tuple(edits),
        "percentile": old["percentile"],
        "target_share": old["reach"],
        "hold_fixed": tuple(old["hold"]) if old["hold"] else None,
        "bound": old["bound"],
        "n_direction_samples": old["measured"],
        "detector": old["detector"],
        "width": old["width"],
        "epochs": old["epochs"],
        "batch": old["batch"],
        "poison_rate": old["rate"],
        "seeds": old["seeds"],
    }
    renamed = {
        "neutral": "prompt",
        "guidance": "guidance",
        "steps": "denoising_steps",
        "bound_prompt": "bound_prompt",
    }
    values |= {new: old[name] for name, new in renamed.items() if old.get(name) is not None}
    return changed(RunConfig(), **values)


def walkthrough_origin(known: dict) -> dict:
    """Version, commit and device of a run, as it recorded them."""
    versions = known.get("versions", {})
    return {
        "version": versions.get("natrig_nb"),
        "commit": versions.get("commit"),
        "device": known.get("device"),
        "provenance": "carried over",
    }


def attack_case(record: dict, generator: str, detail: str | None) -> dict:
    """The case of one attack of a walkthrough."""
    return {
        "experiment": "walkthrough",
        "dataset": DATASETS.get(record["world"], record["world"]),
        "generator": generator,
        "trigger": record["trigger"],
        "space": record["space"],
        "label": "dirty",
        "rate": record["rate"],
        "strength": record["strength"],
        "detector": record["detector"],
        "seed": record["seed"],
        "defense": "none",
        "detail": detail,
    }


def walkthrough_rows(folder: str) -> list[dict]:
    """Attacks at all rates, and defenses."""
    known = json.loads(old_text(f"{folder}/settings.json"))
    origin = walkthrough_origin(known)
    generator = Path(known["settings"]["generator"]).stem
    detail = as_detail(WALKTHROUGHS[folder])
    tables = [old_table(f"{folder}/results.csv")]
    if folder in ("portraits", "faces", "diffusion"):
        tables.append(old_table(f"{folder}/records/rates.csv"))
    attacks = pd.concat(tables).drop_duplicates(["trigger", "rate", "seed"])
    metrics = {name: f"{name}_benign" for name in WITH_BENIGN} | dict.fromkeys(ATTACK_METRICS)
    rows = []
    cases = {}
    for record in attacks.to_dict("records"):
        case = attack_case(record, generator, detail)
        rows += metric_rows(case, record, metrics, origin | {"seconds": record["seconds"]})
        if record["rate"] == known["settings"]["rate"]:
            cases[record["trigger"], record["seed"]] = case
    if len(tables) == 1:
        return rows
    for record in old_table(f"{folder}/defenses.csv").to_dict("records"):
        case = dict(cases[record["trigger"], record["seed"]], defense=record["defense"])
        metric = record["metric"]
        if metric.endswith("_additive"):
            metric = metric.removesuffix("_additive")
            case["defense"] = "strip_additive"
        named = {metric: record["value"], "benign": record["value_benign"]}
        rows += metric_rows(case, named, {metric: "benign"}, origin)
    return rows


GRID_TRANSFORMS = ("jpeg", "blur", "crop", "noise", "resize")
GRID_VISIBLE = ("psnr", "ssim", "feature", "latent", "percentile")


def grid_case(record: dict) -> dict:
    """The case of one row of a grid."""
    return {
        "experiment": "grid",
        "dataset": DATASETS.get(record["world"], record["world"]),
        "generator": record["generator"],
        "trigger": record["trigger"],
        "space": record["space"],
        "label": record["label"],
        "rate": record["rate"],
        "strength": record["strength"],
        "detector": record["detector"],
        "seed": record["seed"],
        "defense": record["defense"],
    }


def grid_origin(record: dict) -> dict:
    """Where a row of a grid comes from, as it recorded it."""
    return {
        "seconds": record["seconds"],
        "code": record["code"],
        "version": record["natrig_nb"],
        "commit": record["commit"],
        "device": record["device_name"],
        "provenance": "carried over",
    }


def attack_columns() -> dict:
    """Columns of a grid about the attack: value -> the same on the benign detector, or None."""
    columns = {name: f"{name}_benign" for name in WITH_BENIGN}
    columns |= {f"asr_{t}": f"asr_benign_{t}" for t in GRID_TRANSFORMS}
    return columns | dict.fromkeys((*ATTACK_METRICS, *GRID_VISIBLE))


def grid_rows(folder: str) -> list[dict]:
    """A grid: attack rows hold the metrics of attacks, defense rows those of the defense."""
    table = old_table(f"{folder}/rows.parquet")
    of_attack = attack_columns()
    defense_columns = [c for c in table if c.startswith("defense_") and not c.endswith("_benign")]
    rows = []
    for record in table.to_dict("records"):
        case = grid_case(record)
        budget = None if pd.isna(record["budget"]) else record["budget"]
        origin = grid_origin(record)
        if record["defense"] == "none":
            rows += metric_rows(case, record, of_attack, origin)
            continue
        case["detail"] = as_detail({"budget": budget})
        named = {}
        metrics = {}
        for column in defense_columns:
            metric = column.removeprefix("defense_")
            named |= {metric: record[column], f"{metric} benign": record[f"{column}_benign"]}
            metrics[metric] = f"{metric} benign"
        rows += metric_rows(case, named, metrics, origin)
    return rows


def victim_rows(folder: str) -> list[dict]:
    """Attack metrics of defense rows that differ from the attack's row: of a victim of another run."""
    table = old_table(f"{folder}/rows.parquet")
    of_attack = attack_columns()
    own = table[table.defense == "none"].set_index(["trigger", "label", "seed"])
    rows = []
    for record in table[table.defense != "none"].to_dict("records"):
        known = own.loc[(record["trigger"], record["label"], record["seed"])]
        differ = {
            value: benign
            for value, benign in of_attack.items()
            if any(
                pd.notna(record[c]) and record[c] != known[c]
                for c in (value, benign)
                if c is not None
            )
        }
        case = dict(grid_case(record), experiment="grid-victims", defense="none")
        case["detail"] = as_detail({"victim_of": record["defense"]})
        rows += metric_rows(case, record, differ, grid_origin(record))
    return rows


UNKNOWN = {"provenance": "unknown"}


def loose_rows(
    path: str, experiment: str, case: dict, columns: dict, metrics: dict, detail: tuple = ()
) -> list[dict]:
    """A table without settings.

    `columns`: column of the long table -> old column; `detail`: old columns without one of their own.
    """
    rows = []
    for record in old_table(path).to_dict("records"):
        values = {new: record[old] for new, old in columns.items() if old in record}
        more = {name: record[name] for name in detail if name in record}
        extra = json.loads(case.get("detail") or "{}")
        known = {"experiment": experiment, "defense": "none", **case, **values}
        known["detail"] = as_detail({**extra, **more})
        rows += metric_rows(known, record, metrics, UNKNOWN)
    return rows


def crossing_rows() -> list[dict]:
    """Attacks with one generator, tested on another."""
    metrics = {"plain": "plain_benign", "triggered": "triggered_benign", "crossed": None}
    columns = {"generator": "trained", "seed": "seed"}
    case = {"dataset": "portraits", "trigger": "smile", "label": "dirty"}
    rows = loose_rows("crossing.csv", "crossing", case, columns, metrics, ["asked"])
    for row in rows:
        detail = json.loads(row["detail"])
        row["detail"] = as_detail({"tested_on": GENERATORS[detail["asked"]]})
        row["generator"] = GENERATORS[row["generator"]]
    return rows


def schedule_rows() -> list[dict]:
    """Attacks with words of a prompt at different denoising steps."""
    metrics = {"asr": "asr_benign", "ba_drop": None}
    metrics |= dict.fromkeys(("smile", "age", "identity", "background"))
    case = {"dataset": "portraits", "generator": "portraits-diffusion", "trigger": "smile+age"}
    return loose_rows("schedules.csv", "schedules", case, {"seed": "seed"}, metrics, ["schedule"])


def longer_rows() -> list[dict]:
    """Attacks whose victims were trained longer."""
    case = {"dataset": "portraits", "generator": "portraits-diffusion", "label": "dirty"}
    columns = {"trigger": "trigger", "seed": "seed"}
    metrics = {"asr": "asr_benign", "ba_drop": None}
    return loose_rows("longer.csv", "longer-training", case, columns, metrics, ["epochs"])


def strip_rows() -> list[dict]:
    """STRIP with fixed and sequential numbers of overlays."""
    columns = {"trigger": "backdoor", "seed": "seed"}
    metrics = {"auroc": None, "passes": None}
    case = {"defense": "strip"}
    return loose_rows("strip.csv", "strip-budget", case, columns, metrics, ["rule", "at"])


def ebyd_rows() -> list[dict]:
    """EBYD on a victim and its benign detector."""
    table = old_table("ebyd.csv")
    both = table[table.detector == "victim"].merge(
        table[table.detector == "benign"], on="seed", suffixes=("", " benign")
    )
    rows = []
    for record in both.to_dict("records"):
        case = {"experiment": "ebyd", "defense": "ebyd", "seed": record["seed"]}
        for name in ("share_real", "before", "after", "by_label"):
            found = {f"ebyd {name}": record[name], "benign": record[f"{name} benign"]}
            row = metric_rows(case, found, {f"ebyd {name}": "benign"}, UNKNOWN)
            rows += [dict(r, metric=name) for r in row]
    return rows


VISIBLE = ("psnr", "ssim", "linf", "l2", "feature")
ERRORS = ("before", "error", "error_real", "error_fake", "changed")
ADVERSARIAL_METRICS = {
    "class": ("success", *VISIBLE),
    "crossing": ERRORS,
    "firing": ("ratio",),
    "masks": ("iou", "least", "reached", "called_fake", "reach", *VISIBLE),
    "patterns": (*ERRORS, *VISIBLE),
    "transfer": ERRORS,
    "visible": ("success", *VISIBLE),
}
ADVERSARIAL_NAMES = {
    "class": "attack",
    "visible": "attack",
    "masks": "drawing",
    "firing": "pattern",
    "patterns": "pattern",
}
ADVERSARIAL_DETAIL = {
    "class": ("target",),
    "crossing": ("source", "made_on"),
    "firing": ("layer", "depth"),
    "masks": ("covers", "label"),
    "transfer": ("source", "data"),
}


def adversarial_files() -> list[str]:
    """The old tables of the perturbation study."""
    command = ["git", "ls-tree", "--name-only", f"{BEFORE}:{OLD}/adversarial"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    return [name for name in names.split() if name.endswith(".csv")]


def adversarial_rows() -> list[dict]:
    """Perturbations: the pattern or attack stands in the column `trigger`, the table in `detail`."""
    rows = []
    for name in adversarial_files():
        kind, _, rest = name.removesuffix(".csv").partition("-")
        columns = {
            "trigger": ADVERSARIAL_NAMES.get(kind, "kind"),
            "strength": "strength",
            "detector": "detector",
            "seed": "seed",
            "n": "n",
            "dataset": "data" if kind == "crossing" else "world",
        }
        case = {"space": "pixels", "detail": as_detail({"table": kind})}
        if kind in ("masks", "visible"):
            case["dataset"] = rest
        if kind == "crossing":
            case["seed"] = int(rest)
        if kind == "masks":
            case["detector"] = "yshape"
        metrics = dict.fromkeys(ADVERSARIAL_METRICS[kind])
        detail = ADVERSARIAL_DETAIL.get(kind, ())
        rows += loose_rows(f"adversarial/{name}", "perturbations", case, columns, metrics, detail)
    return rows


VICTIMS = "victims_of_defenses.parquet"
TABLES = {
    **{name: (walkthrough_rows, name) for name in WALKTHROUGHS},
    "grid": (grid_rows, "grid"),
    "grid-faces": (grid_rows, "grid-faces"),
    "crossing": (crossing_rows,),
    "schedules": (schedule_rows,),
    "longer": (longer_rows,),
    "strip": (strip_rows,),
    "ebyd": (ebyd_rows,),
    "adversarial": (adversarial_rows,),
}


def migrated(name: str) -> pd.DataFrame:
    """The long table of one folder."""
    make, *arguments = TABLES[name]
    return finished(make(*arguments))


def write_settings(folder: str) -> None:
    """The settings of a walkthrough in their new form, with the old ones beside them."""
    known = json.loads(old_text(f"{folder}/settings.json"))
    old = known["settings"]
    known["settings"] = as_dict(new_settings(old))
    known["settings_before_0.2"] = old
    path = ROOT / OLD / folder / "settings.json"
    path.write_text(json.dumps(known, indent=1) + "\n")


def main() -> None:
    """Write all tables and settings."""
    for name in TABLES:
        table = migrated(name)
        (ROOT / OLD / name).mkdir(exist_ok=True)
        path = export_parquet(table, ROOT / OLD / name / "results.parquet")
        print(f"{path.relative_to(ROOT)}: {len(table)} rows, {path.stat().st_size // 1000} kB")
    for folder in ("grid", "grid-faces"):
        rows = victim_rows(folder)
        if rows:
            export_parquet(finished(rows), ROOT / OLD / folder / VICTIMS)
    for folder in WALKTHROUGHS:
        write_settings(folder)


if __name__ == "__main__":
    main()
