"""Encoded prompts: no prompt is encoded twice, and the result is that of a new encoder."""

import dataclasses
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
from torch import nn

from recast.backbones import unet3d
from recast.methods import dmt

from .short_runs import learn, transfer
from .tiny_models import TRANSFORMERS, UNETS

TINY = {**UNETS, **TRANSFORMERS}


@contextmanager
def encoded_prompts(backbone: Any) -> Iterator[list[int]]:
    """Inside this context the list gets the number of prompts in each call of a text encoder."""
    counts: list[int] = []

    def count(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        counts.append(len(named["input_ids"] if "input_ids" in named else args[0]))

    parts = backbone.parts
    encoders = [parts.text_encoder, getattr(parts, "text_encoder_2", None)]
    with ExitStack() as stack:
        for encoder in encoders:
            if encoder is not None:
                handle = encoder.register_forward_pre_hook(count, with_kwargs=True)
                stack.callback(handle.remove)
        yield counts


@pytest.mark.parametrize("kind", TINY)
def test_no_prompt_is_encoded_twice(kind: str) -> None:
    backbone, other = TINY[kind](), TINY[kind]()
    with encoded_prompts(backbone) as counts:
        backbone.encode_text(["", "a cat"])
        first = len(counts)
        both = backbone.encode_text(["a cat", "a dog", "a cat"])
        again = backbone.encode_text(["a dog", ""])
    assert counts == [2] * first + [1] * first
    for got, prompts in ((both, ["a cat", "a dog", "a cat"]), (again, ["a dog", ""])):
        expected = other.encode_text(prompts)
        for field in dataclasses.fields(expected):
            torch.testing.assert_close(getattr(got, field.name), getattr(expected, field.name))


def test_a_change_of_encoded_prompts_does_not_reach_later_calls() -> None:
    backbone = unet3d.tiny()
    expected = backbone.encode_text(["a cat"]).text.clone()
    backbone.encode_text(["a cat"]).text.zero_()
    assert torch.equal(backbone.encode_text(["a cat"]).text, expected)


def test_old_prompts_are_forgotten() -> None:
    backbone = unet3d.tiny()
    backbone.encode_text(["a cat"])
    backbone.encode_text([str(number) for number in range(20)])
    with encoded_prompts(backbone) as counts:
        backbone.encode_text(["19"])
        backbone.encode_text(["a cat"])
    assert counts == [1]


def test_several_results_of_one_motion_encode_each_prompt_once() -> None:
    """The source prompt, the prompt and the empty negative prompt."""
    backbone = unet3d.tiny()
    method = dmt.Method(dmt.Config(guided=0.25, inner_steps=1, inversion_steps=1, restart=False))
    with encoded_prompts(backbone) as counts:
        motion = learn(method, backbone, "a square")
        transfer(method, backbone, motion)
        transfer(method, backbone, motion)
    assert sum(counts) == 3
