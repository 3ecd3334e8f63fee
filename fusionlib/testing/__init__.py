"""The laws every fusion method obeys, and small models to try them on. Needs torch and nothing else.

``check_laws("my_method")`` is what the project's own tests call on every file in ``fusionlib/methods``; an
author of a new method can call it in a notebook too.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

from fusionlib import methods
from fusionlib.core import FusionMethod
from fusionlib.testing import guided, laws
from fusionlib.testing.tiny import (
    assert_same_weights,
    hyperparameters,
    tiny_data,
    tiny_model,
    tiny_models,
    tiny_pictures,
    tiny_transformer,
)

__all__ = [
    "assert_same_weights",
    "check_laws",
    "hyperparameters",
    "laws_of",
    "tiny_data",
    "tiny_model",
    "tiny_models",
    "tiny_pictures",
    "tiny_transformer",
]

Law = Callable[[FusionMethod], None]


def check_laws(name: str | ModuleType) -> list[str]:
    """Checks every law that applies to the method; returns their names.

    Raises: AssertionError, from the first law that does not hold.
    """
    method = methods.get(name)
    checked = laws_of(method)
    for law in checked:
        law(method)
    return [law.__name__ for law in checked]


def laws_of(method: FusionMethod) -> list[Law]:
    """The laws that apply to the method, by what its card says."""
    if method.card.takes == "weights":
        return list(_WEIGHTS)
    return list({"ensemble": _ENSEMBLE, "merge": _GUIDED, "mix": _MIX}[method.card.kind])


_WEIGHTS: tuple[Law, ...] = (
    laws.keeps_keys_shapes_and_dtypes,
    laws.leaves_inputs_alone,
    laws.same_seed_same_bits,
    laws.copies_of_pretrained_change_nothing,
    laws.order_is_without_effect,
    laws.separates_at_its_scope,
    laws.half_precision_agrees,
    laws.one_model_alone_comes_back,
    laws.tied_weights_stay_tied,
    laws.infinite_constants_stay,
    laws.agrees_on_the_gpu,
)
_ENSEMBLE: tuple[Law, ...] = (
    laws.copies_answer_as_one,
    laws.order_of_members_is_without_effect,
    laws.leaves_members_alone,
)
_GUIDED: tuple[Law, ...] = (
    guided.guided_merge_keeps_the_architecture,
    guided.guided_merge_repeats,
    guided.guided_merge_of_copies,
    guided.guided_merge_of_one,
    guided.guided_merge_ignores_the_order,
)
_MIX: tuple[Law, ...] = (
    guided.mix_leaves_members_alone,
    guided.mix_repeats,
)
