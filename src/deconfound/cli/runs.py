"""Verbs that train, embed and score: words of the command line to calls."""

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import create_model

from deconfound.cli.arguments import (
    AggregateArguments,
    CorrectArguments,
    EmbedArguments,
    FitArguments,
    ProfilesArguments,
    TransferArguments,
)
from deconfound.cli.parsing import name_first, parse, take_option
from deconfound.cli.printing import say
from deconfound.config import DataOptions, InterventionOptions, TrainingOptions, did_you_mean
from deconfound.errors import UserError
from deconfound.files.object_store import is_url, staged
from deconfound.runtime.streams import complain

if TYPE_CHECKING:
    from deconfound.runs.config import RunConfig
    from deconfound.runs.run import Run


def call_fit(words: list[str]) -> None:
    """Train a method, or the recommended recipe."""
    from deconfound import methods
    from deconfound.data.screens.screen import open_screen
    from deconfound.runs.config import config_model, read_config
    from deconfound.runs.recommended import METHOD, RECOMMENDED, recommend
    from deconfound.training.fit import fit

    words, config_file = take_option(words, "--config")
    name, words = _method_first(words, [*methods.names(), RECOMMENDED])
    if config_file:
        default = read_config(Path(config_file), name)
        name = default.method
    else:
        name = name or RECOMMENDED
        trained = METHOD if name == RECOMMENDED else name
        default = config_model(trained)(method=trained)
        default = default.model_copy(update={"training": TrainingOptions()})
    form = take_option(words, "--form")[1]
    if form in default.options.FORMS and form != getattr(default.options, "form", None):
        default = default.model_copy(update={"options": default.options.in_form(form)})
    method = methods.load(default.method)
    about = f"{method.SUMMARY}. {method.PAPER}. --config FILE.yaml sets defaults."
    if name == RECOMMENDED:
        about = (
            "Without a METHOD: erm, set by what is known to do best on screens like this one; an "
            f"option that is given counts. METHOD is one of {', '.join(methods.names())}."
        )
    parsed: Any = parse(_fit_arguments(default), words, f"fit {name}", about)
    if name == RECOMMENDED:
        if parsed.intervention.intervene is not None:
            raise UserError(
                f"fit {name}: --intervene trains a method that is named; expected fit {METHOD}, or "
                "another, before the screen"
            )
        found = recommend(open_screen(parsed.screen), parsed.data)
        if take_option(words, "--standardise-by")[1] == "None":
            raise UserError(
                f"fit {name}: --standardise-by None leaves nothing of the recipe; expected fit "
                f"{METHOD} before the screen"
            )
        parsed = parse(_fit_arguments(found.config), words, f"fit {name}", about)
        say(f"{name}: {found.text}{_given_instead(found.config.data, parsed.data)}")
    if parsed.intervention.intervene is None:
        for option, value in parsed.intervention:
            if value != getattr(InterventionOptions(), option):
                flag = "--" + option.replace("_", "-")
                raise UserError(f"fit {name}: {flag} belongs to --intervene RUN; add it")
    config = config_model(default.method)(
        method=default.method,
        seed=parsed.seed,
        data=parsed.data,
        intervention=parsed.intervention,
        training=parsed.training,
        options=parsed.method,
    )
    if parsed.tracker is None:
        done = fit(config, parsed.screen, parsed.out, quiet=parsed.quiet, warn=complain, say=say)
    else:
        done = _tracked_fit(config, parsed)
    say(f"run in {done.path}")


def _tracked_fit(config: "RunConfig", parsed: Any) -> "Run":
    """`fit` followed by a tracker, which gets the pictures of the finished run at the end."""
    from deconfound.reports.tracked import show_pictures
    from deconfound.training.fit import fit
    from deconfound.training.tracking.tracker import Tracker

    with Tracker(parsed.tracker, complain) as tracker:
        done = fit(
            config, parsed.screen, parsed.out, quiet=parsed.quiet, warn=complain, say=say,
            tracker=tracker,
        )  # fmt: skip
        show_pictures(done, parsed.screen, tracker)
    return done


def _given_instead(chosen: DataOptions, taken: DataOptions) -> str:
    """What was given in place of what was chosen, to be said after that."""
    names = ("standardise_by", "standardise_with", "standardise")
    given = [name for name in names if getattr(taken, name) != getattr(chosen, name)]
    words = (f"--{name.replace('_', '-')} {getattr(taken, name)}" for name in given)
    return f"; but as given, {' '.join(words)}" if given else ""


def _method_first(words: list[str], known: list[str]) -> tuple[str | None, list[str]]:
    """The name that `fit` begins with, None if it is left out, and the other words."""
    from deconfound import methods

    if not words:
        raise UserError(
            "fit: name a screen, and before it a method if not what is recommended; there are "
            f"{', '.join(known)}"
        )
    first = words[0]
    if first in known:
        return first, words[1:]
    if first.startswith("-") or Path(first).exists() or is_url(first):
        return None, words
    methods.refuse_post_hoc(first)
    raise UserError(
        f"fit: {first!r} is neither a method nor an existing path; {did_you_mean(first, known)}"
    )


def _fit_arguments(default: "RunConfig") -> type[FitArguments]:
    """The arguments of `fit` with the method and the defaults of a configuration."""
    return create_model(
        "WithMethod",
        __base__=FitArguments,
        seed=(int, default.seed),
        method=(type(default.options), default.options),
        data=(DataOptions, default.data),
        intervention=(InterventionOptions, default.intervention),
        training=(TrainingOptions, default.training),
    )


def call_embed(words: list[str]) -> None:
    """Embed a screen with a run, or take the profiles of a screen as they are."""
    if _names_profiles(words):
        call_profiles(words)
        return
    parsed = parse(EmbedArguments, words, "embed")
    from deconfound.data.readers.embedded import INDEX
    from deconfound.embeddings.embed import embed, embed_shards

    cluster = parsed.cluster()
    if cluster is not None and is_url(parsed.out):
        raise UserError(
            f"embed: --out {parsed.out}: the workers of a cluster write into a folder that they "
            "share; expected one, copy it to the object store afterwards"
        )
    with staged(parsed.out, (INDEX,)) as out:
        given = parsed.model_dump(exclude={"executor", "workers", "address"})
        given |= {"out": out, "cluster": cluster}
        index = None
        if out.suffix:
            rows = len(embed(**given, say=say).table)
        else:
            index = embed_shards(**given, say=say)
    if parsed.out.suffix:
        say(f"{rows:,} embeddings in {parsed.out}")
    elif index is not None:
        say(f"{index.rows:,} embeddings in {len(index.shards)} files in {parsed.out}")
    else:
        say(f"{parsed.out}: other processes have files of it to embed; the last one makes it")


def _names_profiles(words: list[str]) -> bool:
    """Whether a screen is all that is named, where `embed` expects a run and a screen."""
    if all(word.startswith("-") for word in words):
        return False
    from deconfound.data.screens.screen import holds_screen

    runs = [word for word in words if (Path(word) / "config.yaml").is_file()]
    screens = [word for word in words if holds_screen(Path(word))]
    leading = list(itertools.takewhile(lambda word: not word.startswith("-"), words))
    return len(screens) == 1 and not runs and len(leading) < 2


def call_profiles(words: list[str]) -> None:
    """Write profiles as an embeddings file."""
    from deconfound.embeddings.embed import profiles

    arguments = create_model(
        "WithData", __base__=ProfilesArguments, data=(DataOptions, DataOptions())
    )
    parsed: Any = parse(arguments, words, "embed", ProfilesArguments.__doc__ or "")
    made = profiles(parsed.screen, parsed.out, parsed.data)
    say(f"{len(made.table):,} profiles in {parsed.out}")


def call_correct(words: list[str]) -> None:
    """Correct embeddings after training."""
    from deconfound.embeddings.correct import KNN, NOTES, correct, names
    from deconfound.methods import post_hoc

    name = name_first(words, "correct", "post hoc method", names())
    arguments: type[CorrectArguments] = CorrectArguments
    about = "No correction: the k nearest training rows vote for every row's label."
    if name != KNN:
        method = post_hoc.load(name)
        arguments = create_model(
            "WithPostHoc", __base__=CorrectArguments, method=(method.Options, method.Options())
        )
        about = f"{method.SUMMARY}. {method.PAPER}."
    parsed: Any = parse(arguments, words[1:], f"correct {name}", about)
    done = correct(
        name,
        parsed.embeddings,
        parsed.out,
        None if name == KNN else parsed.method,
        representation=parsed.representation,
        knn=parsed.knn,
        reference=parsed.reference,
        control=parsed.control,
    )
    if done.about["saw_held_out"]:
        complain(f"{parsed.out}: held-out rows took part; every score says so")
    for note in done.about.get(NOTES, []):
        complain(f"{parsed.out}: {note}")
    say(f"{len(done.table):,} embeddings of {done.about['method']} in {parsed.out}")


def call_aggregate(words: list[str]) -> None:
    """Average cells per guide and gene."""
    from deconfound.embeddings.aggregate import AggregateOptions, aggregate

    arguments = create_model(
        "WithLevels", __base__=AggregateArguments, levels=(AggregateOptions, AggregateOptions())
    )
    parsed: Any = parse(arguments, words, "aggregate", AggregateArguments.__doc__ or "")
    made = aggregate(parsed.embeddings, parsed.out, parsed.levels, quiet=parsed.quiet)
    for note in made.about["aggregated"].get("notes", []):
        complain(f"{parsed.out}: {note}")
    of = {"gene": "genes", "guide": "guides"}[parsed.levels.level]
    say(f"{len(made.table):,} rows of {of}, {made.control.sum()} of controls, in {parsed.out}")


def call_transfer(words: list[str]) -> None:
    """Draw a swap grid, or impute a screen."""
    parsed = parse(TransferArguments, words, "transfer")
    from deconfound.counterfactuals.impute import impute
    from deconfound.counterfactuals.swap import transfer

    common: dict[str, Any] = {"images": parsed.images, "seed": parsed.seed}
    paths = parsed.run, parsed.screen, parsed.out
    if parsed.to is None:
        if parsed.relative_style is not None:
            raise UserError("transfer: --relative-style belongs to --to ENVIRONMENT; add it")
        transfer(*paths, **common)
        say(f"swap grid in {parsed.out / 'swap.png'}")
        return
    common |= {"relative_style": parsed.relative_style, "quiet": parsed.quiet}
    done = impute(*paths, to=parsed.to, **common)
    shares = done.landing.shares()
    clipped = f"{100 * done.clipped:.2g} % of values clipped"
    say(f"{len(done.rows):,} images in {done.screen.path}, {clipped}")
    say(
        f"of the {shares['neighbors']} real cells nearest to an imputed one "
        f"{100 * shares['imputed']:.0f} % are of {parsed.to}, {100 * shares['originals']:.0f} % "
        f"before; pictures in {parsed.out}"
    )
