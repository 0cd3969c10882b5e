"""Parity with the released implementations, as recorded in golden cases.

pytest tests/parity                        the small cases kept here
pytest tests/parity --golden=DIR           any folder of cases; -k selects by name
"""

from functools import partial

import mae_st_cases
import maskfeat_cases
import mvit_cases
import optim_cases
import pytest
import transformers_cases
import umt_cases
import videomae_cases
from golden import Case, Comparison

VIDEOMAE = {
    "pretrain": videomae_cases.pretrain,
    "finetune": videomae_cases.finetune,
    "position tables": videomae_cases.position_tables,
    "mask generators": videomae_cases.mask_generators,
    "schedule": videomae_cases.schedule,
    "param_groups_pretrain": partial(videomae_cases.param_groups, stage="pretrain"),
    "param_groups_finetune": partial(videomae_cases.param_groups, stage="finetune"),
}
TRANSFORMERS = {
    "pretrain": transformers_cases.pretrain,
    "finetune": transformers_cases.classification,
}
MAE_ST = {
    "pretrain": mae_st_cases.pretrain,
    "finetune": mae_st_cases.finetune,
    "schedule": optim_cases.mae_st_schedule,
    "param_groups_pretrain": partial(optim_cases.mae_st_groups, stage="pretrain"),
    "param_groups_finetune": partial(optim_cases.mae_st_groups, stage="finetune"),
}
MASKFEAT = {
    "finetune": mvit_cases.finetune,
    "pretrain": maskfeat_cases.pretrain,
    "HOG layer": maskfeat_cases.histograms,
    "mask generator": maskfeat_cases.mask_generators,
    "schedule": optim_cases.maskfeat_schedule,
    "param_groups_pretrain": partial(optim_cases.maskfeat_groups, stage="pretrain"),
    "param_groups_finetune": partial(optim_cases.maskfeat_groups, stage="finetune"),
}
UMT = {
    "pretrain (alignment)": umt_cases.pretrain,
    "mask sampling": umt_cases.mask_sampling,
    "finetune": videomae_cases.finetune,
    "position tables": umt_cases.position_tables,
    "schedule": videomae_cases.schedule,
    "param_groups_pretrain": partial(optim_cases.umt_groups, stage="pretrain"),
    "param_groups_finetune": partial(optim_cases.umt_groups, stage="finetune"),
}
RUNNERS = {
    "mae_st": MAE_ST,
    "maskfeat": MASKFEAT,
    "umt": UMT,
    "videomae": VIDEOMAE,
    "videomae_v2": VIDEOMAE,
    "videomae (Hugging Face layout)": TRANSFORMERS,
}


def test_matches_reference(golden_test, record_property):
    path, part = golden_test
    case = Case.read(path)
    system, kind = case.meta["system"], part or case.meta["stage"]
    if system not in RUNNERS:
        pytest.fail(
            f"{path.name}: system {system!r} is not implemented; known are {', '.join(RUNNERS)}",
            pytrace=False,
        )
    if kind not in RUNNERS[system]:
        pytest.fail(
            f"{path.name}: {system!r} has no test for {kind!r}; "
            f"known are {', '.join(RUNNERS[system])}",
            pytrace=False,
        )
    result = Comparison(case, part)
    RUNNERS[system][kind](case, result)
    record_property("parity", result.summary())
    if result.problems:
        pytest.fail(result.complaint(), pytrace=False)
