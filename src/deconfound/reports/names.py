"""Names by which a report tells the settings of a method apart."""

from typing import Any

import yaml

# Options that may differ between runs of one setting of a method.
INCIDENTAL = (
    "method", "seed", "data.fold", "training.device", "training.precision", "training.threads",
    "training.validate_every", "training.checkpoint_every", "intervention.intervene", "imputer",
)  # fmt: skip


class Names:
    """Names of methods, told apart by the options in which their configurations differ."""

    def __init__(self, configs: list[dict[str, Any]]) -> None:
        """`configs` are the run configurations of everything in one report."""
        self._differing: dict[str, list[str]] = {}
        self._long: set[tuple[str, str]] = set()
        for method in {_title(config) for config in configs}:
            flat = [_flat(config) for config in configs if _title(config) == method]
            keys = dict.fromkeys(key for one in flat for key in one if key not in INCIDENTAL)
            self._differing[method] = [
                key for key in keys if len({one.get(key) for one in flat}) > 1
            ]
            for key in self._differing[method]:
                full = {one[key] for one in flat if key in one}
                if len({_short(value) for value in full}) < len(full):
                    self._long.add((method, key))

    def of(self, config: dict[str, Any]) -> str:
        """The name of a configuration: "scbd", or "scbd (alpha 8.0)" beside another alpha."""
        method = _title(config)
        flat, differing = _flat(config), self._differing[method]
        written = {
            key: flat[key] if (method, key) in self._long else _short(flat[key])
            for key in differing
            if key in flat
        }
        words = [f"{key.split('.')[-1]} {value}" for key, value in written.items()]
        return f"{method} ({', '.join(words)})" if words else method


def _title(config: dict[str, Any]) -> str:
    """`RunConfig.title` of a configuration as JSON, and the names of post hoc corrections."""
    options = config.get("options", {})
    adapted = options.get("domain_adaptation", False) or options.get("context_images") is not None
    adapted = adapted or config.get("data", {}).get("standardise_by") is not None
    name = f"{config['method']}-da" if adapted else str(config["method"])
    imputer = [config["imputer"]] if config.get("imputer") else []
    return "+".join([name, *imputer, *config.get("post_hoc", {})])


def _short(value: str) -> str:
    """A fraction in four digits, as trials have sixteen; other text as it is."""
    try:
        return value if len(value) < 7 or "." not in value else f"{float(value):.4g}"
    except ValueError:
        return value


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Options by dotted name, as text. None is left out: older releases lack such options."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        elif value is not None:
            flat[prefix + key] = yaml.safe_dump(value, default_flow_style=True).split("\n")[0]
    return flat
