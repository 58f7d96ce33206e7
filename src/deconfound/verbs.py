"""One table of verbs: what the command line, its help, the public functions and the docs list."""

from typing import NamedTuple


class Form(NamedTuple):
    """One way to use a verb."""

    call: str
    """MODULE:FUNCTION in `deconfound.cli`, which takes the words after the verb."""
    page: str
    """Name of its page in docs/."""
    functions: str
    """Public functions and classes of `deconfound`: MODULE:NAME, with spaces between several."""
    usage: str
    """The words after `deconfound`, in short."""


class Verb(NamedTuple):
    """A verb of the command line."""

    summary: str
    forms: tuple[Form, ...]
    """The first is the verb by itself."""
    resumes: bool = False
    """Whether the same command goes on where it was stopped, in every form; functions that do in
    some forms say so by `stop.told`."""
    saves: bool = False
    """Whether a command that is told to end has saved its work and ends with 0."""


# fmt: off
VERBS = {
    "compare": Verb(
        "methods × folds × seeds of a plan, a screen or a demonstration: a table and a verdict", (
        Form("comparing:call_compare", "compare", "studies.compare:compare",
             "compare FILE.yaml | SCREEN | demo --out DIR"),
    ), resumes=True, saves=True),
    "simulate": Verb(
        "make a screen with planted truth; --cells SCREEN puts technical effects into real cells", (
        Form("screens:call_simulate", "simulate", "data.simulation.simulate:simulate",
             "simulate --out SCREEN"),
        Form("screens:call_inject", "inject", "data.simulation.inject:inject",
             "simulate --cells CLEAN --out SCREEN"),
    )),
    "ingest": Verb(
        "make a screen of your table and images, a public data set, or CellProfiler's features", (
        Form("screens:call_ingest", "ingest",
             "data.ingest.images:ingest data.ingest.profiles:ingest_profiles "
             "data.ingest.arrays:ingest_array data.screens.screen:Screen "
             "data.screens.screen:open_screen",
             "ingest TABLE --images-root DIR --out SCREEN"),
        Form("screens:call_source", "source", "",
             "ingest source NAME --root DIR --out SCREEN"),
        Form("screens:call_cellprofiler", "cellprofiler", "data.ingest.cellprofiler:cellprofiler",
             "ingest cellprofiler IMAGES --out SCREEN"),
    )),
    "describe": Verb("what a screen holds, what can be held out, what is confounded", (
        Form("screens:call_describe", "describe", "description.describe:describe",
             "describe SCREEN"),
    )),
    "fit": Verb(
        "train one method, or what is recommended for the screen, on one fold with one seed", (
        Form("runs:call_fit", "fit", "training.fit:fit estimator.deconfounder:Deconfounder",
             "fit [METHOD] SCREEN --hold-out COLUMN=GROUP --out RUN"),
    ), resumes=True, saves=True),
    "embed": Verb(
        "embed every image of a screen with a run, or take profiles as they are", (
        Form("runs:call_embed", "embed",
             "embeddings.embed:embed embeddings.embed:embed_shards",
             "embed RUN SCREEN --out FILE.h5ad"),
        Form("runs:call_profiles", "profiles", "embeddings.embed:profiles",
             "embed PROFILES --out FILE.h5ad"),
    )),
    "features": Verb(
        "embed every image once with a frozen encoder, as a screen of profiles", (
        Form("screens:call_features", "features", "embeddings.features:features",
             "features SCREEN --encoder NAME --weights FILE --out FEATURES"),
    ), resumes=True),
    "correct": Verb("take the environment out of embeddings after training", (
        Form("runs:call_correct", "correct", "embeddings.correct:correct",
             "correct METHOD FILE.h5ad --out FILE.h5ad"),
    )),
    "aggregate": Verb("from cells to guides to genes", (
        Form("runs:call_aggregate", "aggregate", "embeddings.aggregate:aggregate",
             "aggregate FILE.h5ad --out FILE.h5ad"),
    )),
    "measure": Verb(
        "score embeddings, gene relations, retrieval or imputed images, by what is given", (
        Form("scoring:call_measure", "measure", "evaluation.measure:measure",
             "measure FILE.h5ad … --out SCORES.parquet"),
        Form("scoring:call_relations", "relations", "evaluation.relations:relations",
             "measure GENES.h5ad … --complexes FILE --out SCORES.parquet"),
        Form("scoring:call_retrieval", "retrieval", "evaluation.retrieval:retrieval",
             "measure FILE.h5ad … --retrieval --out SCORES.parquet"),
        Form("scoring:call_imputation", "imputation", "counterfactuals.judge:imputation",
             "measure RUN SCREEN --out SCORES.parquet"),
    )),
    "transfer": Verb(
        "counterfactual images: swap content and style, or impute into an environment", (
        Form("runs:call_transfer", "transfer",
             "counterfactuals.swap:transfer counterfactuals.impute:impute",
             "transfer RUN SCREEN --out DIR"),
    )),
    "report": Verb("one HTML page of runs, embeddings and scores", (
        Form("comparing:call_report", "report", "reports.report:report",
             "report PATH … --out PAGE.html"),
    )),
    "export": Verb("a screen as OME-TIFF files and a table, or profiles as Parquet", (
        Form("screens:call_export", "export", "data.screens.export:export",
             "export SCREEN --out DIR"),
    )),
    "export-model": Verb("a run's encoder as a directory that others open, with a model card", (
        Form("screens:call_export_model", "export-model",
             "reports.model_directory:export_model "
             "embeddings.content_encoder:ContentEncoder",
             "export-model RUN --out DIR"),
    )),
    "check": Verb("verify that screens, runs, embeddings and scores are whole", (
        Form("screens:call_check", "check", "verification:check",
             "check PATH"),
    )),
    "list": Verb("list methods, metrics or sources", (
        Form("lists:call_list", "list", "",
             "list methods | metrics | sources"),
    )),
}
# fmt: on

PUBLIC = {
    name: f"deconfound.{module}"
    for verb in VERBS.values()
    for form in verb.forms
    for module, _, name in (text.partition(":") for text in form.functions.split())
}
"""The module of every public function and class."""
