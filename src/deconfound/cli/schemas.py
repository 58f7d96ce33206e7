"""JSON schemas of the files that people write or read, for editors: --schema NAME."""

import json
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel

from deconfound.errors import UserError, did_you_mean

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema_text(name: str) -> str:
    """A schema as JSON; raises UserError for a name that is none of `SCHEMAS`."""
    if name not in SCHEMAS:
        raise UserError(f"--schema: unknown file {name!r}; {did_you_mean(name, list(SCHEMAS))}")
    return json.dumps({"$schema": DIALECT} | SCHEMAS[name](), indent=1)


def run_schema() -> dict[str, Any]:
    """The configuration of a run, whose options are those of the method it names."""
    from deconfound import methods
    from deconfound.runs.config import RunConfig

    schema = RunConfig.model_json_schema()
    names = methods.names()
    schema["properties"]["method"] |= {"enum": names}
    schema["properties"]["options"] = {"type": "object"}
    schema["allOf"] = []
    for name in names:
        schema["$defs"] |= (own := _of_options(name, methods.load(name).Options))
        schema["allOf"].append(
            {
                "if": {"properties": {"method": {"const": name}}},
                "then": {"properties": {"options": {"$ref": f"#/$defs/{next(iter(own))}"}}},
            }
        )
    return schema


def plan_schema() -> dict[str, Any]:
    """The file of an experiment, whose options are those of all methods."""
    from deconfound.config import DataOptions, InterventionOptions, TrainingOptions
    from deconfound.experiments.plan_file import PlanFile

    schema = PlanFile.model_json_schema()
    sections: dict[str, type[BaseModel]] = {
        "data": DataOptions,
        "training": TrainingOptions,
        "intervention": InterventionOptions,
    }
    for name, model in sections.items():
        schema["$defs"] |= _of_options(name, model)
    for given in (schema, schema["$defs"]["Entry"]):
        for name in given["properties"].keys() & sections.keys():
            about = given["properties"][name].get("description")
            given["properties"][name] = {"$ref": f"#/$defs/{name}"}
            if about is not None:
                given["properties"][name]["description"] = about
    schema["properties"]["methods"]["additionalProperties"] = {
        "anyOf": [{"$ref": "#/$defs/Entry"}, {"type": "null"}]
    }
    return schema


def verdict_schema() -> dict[str, Any]:
    """The verdict.json of a comparison; a reader passes over keys that the schema lacks."""
    from deconfound.reports.verdict import Verdict

    return Verdict.model_json_schema()


def _of_options(name: str, model: type[BaseModel]) -> dict[str, Any]:
    """Definitions, the first of the model itself, under names that no other model has."""
    schema = model.model_json_schema(ref_template=f"#/$defs/{name}.{{model}}")
    inner = schema.pop("$defs", {})
    return {name: schema, **{f"{name}.{key}": value for key, value in inner.items()}}


SCHEMAS: dict[str, Callable[[], dict[str, Any]]] = {
    "run": run_schema,
    "plan": plan_schema,
    "verdict": verdict_schema,
}
