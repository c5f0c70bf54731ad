"""The contract, bound to model and native classes of every kind."""

from __future__ import annotations

from typing import ClassVar

import lapse
from contract import Contract, OptionContract
from contract_time import EarlyContract, FixedContract, SlidingContract, TimeContract
from model import ModelProbabilisticTTLCache, ModelSlidingTTLCache, ModelTTLCache


class TestTTLCache(Contract, TimeContract, FixedContract, OptionContract):
    classes: ClassVar = {"model": ModelTTLCache, "native": lapse.TTLCache}


class TestSlidingTTLCache(Contract, TimeContract, SlidingContract, OptionContract):
    classes: ClassVar = {"model": ModelSlidingTTLCache, "native": lapse.SlidingTTLCache}


class TestProbabilisticTTLCache(
    Contract, TimeContract, FixedContract, EarlyContract, OptionContract
):
    classes: ClassVar = {"model": ModelProbabilisticTTLCache, "native": lapse.ProbabilisticTTLCache}
    fixed: ClassVar = {"early_expiry_factor": 0.0}
