"""What the methods that compare environments have in common."""

import pytest
import torch

from deconfound import methods
from deconfound.errors import UserError
from deconfound.methods.contract import Task

COMPARING = ("coral", "fish", "groupdro", "irm", "scbd")


@pytest.mark.parametrize("name", COMPARING)
def test_one_environment_is_refused_in_one_line(name: str) -> None:
    method = methods.load(name)
    with pytest.raises(UserError, match=f"^{name}: training has 1 environment; expected 2") as no:
        method(method.Options(), Task(3, None, 2, 1))
    assert "\n" not in str(no.value)


@pytest.mark.parametrize("name", COMPARING[:4])
def test_batches_are_balanced_and_images_are_taken_as_well_as_profiles(name: str) -> None:
    method = methods.load(name)
    assert method.SAMPLER == "environment_balanced"
    for size, shape in ((None, (2, 3)), (24, (2, 3, 24, 24))):
        built = method(method.Options(norm="group"), Task(3, size, 5, 2)).eval()
        embedded = built.embed(torch.randn(shape))
        assert embedded["representation"].shape == (2, 256)
        logits = built.predict(embedded)
        assert logits is not None
        assert logits.shape == (2, 5)
