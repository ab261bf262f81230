"""The nested MLM loss against the plain loop, and the model against a plain ``BertForMaskedLM``."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

from matryoshka_st.mlm.loss import nested_cross_entropy, token_scores
from matryoshka_st.mlm.masking import BatchSeededMasking
from matryoshka_st.mlm.model import MatryoshkaBertForMaskedLM
from matryoshka_st.nesting import MatryoshkaDims

TOKENS, WORDS, WIDTH = 47, 31, 13
DIMS = (1, 5, 13)
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def operands(tokens: int = TOKENS) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    hidden, embedding, bias = (
        torch.randn(*shape, dtype=torch.float64, requires_grad=True)
        for shape in ((tokens, WIDTH), (WORDS, WIDTH), (WORDS,))
    )
    return hidden, embedding, bias, torch.randint(WORDS, (tokens,))


def looped(hidden: Tensor, embedding: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
    return torch.stack(
        [F.cross_entropy(hidden[:, :m] @ embedding[:, :m].T + bias, labels, reduction="sum") for m in DIMS]
    )


@pytest.mark.parametrize("logits_per_chunk", [1, 16 * WORDS, TOKENS * WORDS, 10**6])
def test_loss_and_gradients_equal_the_plain_loop(logits_per_chunk: int) -> None:
    *inputs, labels = operands()
    hidden, embedding, bias = inputs
    weights = (0.5, 2.0, 1.0)
    expected = looped(*inputs, labels) @ torch.tensor(weights, dtype=torch.float64)
    prefixes = [hidden[:, :m] for m in DIMS]
    actual = nested_cross_entropy(prefixes, embedding, bias, labels, weights, logits_per_chunk=logits_per_chunk)
    torch.testing.assert_close(actual, expected, **EXACT)
    expected_gradients = torch.autograd.grad(3 * expected, inputs)
    torch.testing.assert_close(torch.autograd.grad(3 * actual, inputs), expected_gradients, **EXACT)


def test_no_logits_are_kept_for_backward() -> None:
    hidden, embedding, bias, labels = operands(tokens=200)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        nested_cross_entropy([hidden[:, :m] for m in DIMS], embedding, bias, labels, (1.0, 1.0, 1.0))
    assert max(kept) == max(embedding.numel(), hidden.numel()) < len(labels) * WORDS


def test_scores_are_those_of_the_plain_logits() -> None:
    hidden, embedding, bias, labels = operands()
    losses, hits = token_scores([hidden[:, :m] for m in DIMS], embedding, bias, labels)
    torch.testing.assert_close(losses.sum(dim=0), looped(hidden, embedding, bias, labels), **EXACT)
    best = [(hidden[:, :m] @ embedding[:, :m].T + bias).argmax(dim=1) for m in DIMS]
    assert torch.equal(hits, torch.stack(best, dim=1) == labels[:, None])


def test_under_autocast_products_are_rounded_and_nothing_else() -> None:
    *inputs, labels = (x.detach().float().requires_grad_() if x.is_floating_point() else x for x in operands())
    hidden, embedding, bias = inputs
    with torch.autocast("cpu", torch.bfloat16):
        loss = nested_cross_entropy([hidden[:, :m] for m in DIMS], embedding, bias, labels, (1.0, 1.0, 1.0))
    expected = looped(*inputs, labels).sum()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=0.01, atol=0)
    for ours, theirs in zip(torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, inputs), strict=True):
        assert ours.dtype == torch.float32
        assert (ours - theirs).norm() < 0.02 * theirs.norm()


def test_no_tokens_cost_nothing() -> None:
    hidden, embedding, bias, labels = operands(tokens=0)
    loss = nested_cross_entropy([hidden[:, :m] for m in DIMS], embedding, bias, labels, (1.0, 1.0, 1.0))
    assert loss == 0
    assert not torch.autograd.grad(loss, embedding)[0].any()


def bert(nest: str = "encoder", dims: tuple[int, ...] = (4, 16, 32), **config: float) -> MatryoshkaBertForMaskedLM:
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    settings = BertConfig(vocab_size=60, max_position_embeddings=16, **shape, **no_dropout, **config)
    model = MatryoshkaBertForMaskedLM(settings, MatryoshkaDims.of(dims), sorted({*dims, 32}), nest)
    with torch.no_grad():
        model.cls.predictions.bias.normal_()
    return model.double()


def batch(texts: int = 6) -> dict[str, Tensor]:
    ids = torch.randint(5, 60, (texts, 9))
    attention_mask = torch.ones_like(ids)
    attention_mask[1:, 7:] = 0
    labels = torch.where(torch.rand(ids.shape) < 0.4, torch.randint(60, ids.shape), -100)
    labels[attention_mask == 0] = -100
    labels[-1] = -100
    return {"input_ids": ids, "attention_mask": attention_mask, "labels": labels}


def plain(model: MatryoshkaBertForMaskedLM) -> BertForMaskedLM:
    twin = BertForMaskedLM(model.config).double()
    twin.load_state_dict(model.state_dict())
    return twin


@pytest.mark.parametrize("training", [True, False])
def test_only_masked_tokens_reach_the_head(training: bool) -> None:
    model, inputs = bert().train(training), batch()
    rows: list[int] = []
    model.cls.predictions.transform.register_forward_hook(lambda _, arguments, __: rows.append(len(arguments[0])))
    model(**inputs)
    assert set(rows) == {int((inputs["labels"] != -100).sum())}


@pytest.mark.parametrize("nest", ["encoder", "head"])
@pytest.mark.parametrize("training", [True, False])
def test_the_full_width_alone_is_a_plain_bert(nest: str, training: bool) -> None:
    model, inputs = bert(nest, dims=(32,)).train(training), batch()
    twin = plain(model).train(training)
    ours, theirs = model(**inputs).loss, twin(**inputs).loss
    torch.testing.assert_close(ours, theirs, **EXACT)
    if training:
        ours.backward()
        theirs.backward()
        for (name, parameter), other in zip(model.named_parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(parameter.grad, other.grad, **EXACT, msg=name)


def test_a_prefix_knows_nothing_but_its_coordinates_of_the_encoder() -> None:
    model, inputs = bert(dims=(4,)), batch()
    hidden = model.bert(inputs["input_ids"], attention_mask=inputs["attention_mask"])[0].detach().requires_grad_()
    model.bert.forward = lambda *_, **__: (hidden,)
    model.train()(**inputs).loss.backward()
    assert hidden.grad is not None
    assert hidden.grad[..., :4].any() and not hidden.grad[..., 4:].any()


def test_a_prefix_of_the_head_is_the_cut_output_of_the_transform() -> None:
    model, inputs = bert("head", dims=(4,)), batch()
    predictions, masked = model.cls.predictions, inputs["labels"] != -100
    hidden = model.bert(inputs["input_ids"], attention_mask=inputs["attention_mask"])[0][masked]
    logits = predictions.transform(hidden)[:, :4] @ predictions.decoder.weight[:, :4].T + predictions.bias
    expected = F.cross_entropy(logits, inputs["labels"][masked])
    torch.testing.assert_close(model.train()(**inputs).loss, expected, **EXACT)


def test_the_loss_is_the_weighted_sum_over_dims() -> None:
    model, inputs = bert(), batch()
    alone = {}
    for dim in (4, 16, 32):
        model.nested = MatryoshkaDims.of([dim])
        alone[dim] = model.train()(**inputs).loss.item()
    model.nested = MatryoshkaDims.of([32, 4, 16], [1.0, 0.25, 3.0])
    expected = alone[32] + 0.25 * alone[4] + 3.0 * alone[16]
    assert model.train()(**inputs).loss.item() == pytest.approx(expected, rel=1e-12)
    assert model.eval()(**inputs).loss.item() == pytest.approx(expected, rel=1e-12)


def test_evaluation_counts_by_text() -> None:
    model, inputs = bert().eval(), batch()
    output = model(**inputs)
    logits = plain(model).eval()(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    hits = (logits.argmax(dim=-1) == inputs["labels"]).sum(dim=1)
    assert torch.equal(output.hits[:, 2].long(), hits)
    losses = F.cross_entropy(logits.transpose(1, 2), inputs["labels"], reduction="none").sum(dim=1)
    torch.testing.assert_close(output.losses[:, 2], losses, **EXACT)


def test_evaluation_of_texts_without_a_masked_token_counts_nothing() -> None:
    inputs = batch()
    output = bert().eval()(**{**inputs, "labels": torch.full_like(inputs["labels"], -100)})
    assert output.loss == 0
    for scores in (output.losses, output.hits):
        assert scores.shape == (6, 3) and not scores.any()


def test_parts_of_a_step_add_up_to_the_whole() -> None:
    model, inputs = bert().train(), batch()
    twin = copy.deepcopy(model)
    count = (inputs["labels"] != -100).sum()
    model(**inputs).loss.backward()
    for part in (slice(0, 1), slice(1, 5), slice(5, 6)):
        twin(**{name: value[part] for name, value in inputs.items()}, num_items_in_batch=count).loss.backward()
    for parameter, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-9, atol=1e-12)


def masking(folder: Path, **options: float) -> BatchSeededMasking:
    return BatchSeededMasking(tokenizer=AutoTokenizer.from_pretrained(folder), **options)


def examples(count: int, length: int = 20) -> list[dict[str, list[int]]]:
    ids = [[2, *torch.randint(5, 70, (length - 2,)).tolist(), 3] for _ in range(count)]
    return [{"input_ids": row, "special_tokens_mask": [1, *[0] * (length - 2), 1]} for row in ids]


def test_masks_depend_on_the_batch_and_the_seed_alone(tiny_bert_path: Path) -> None:
    rows, masks = examples(8), masking(tiny_bert_path)
    first = masks(rows)
    masks(rows[::-1])
    again = masking(tiny_bert_path)(rows)
    assert torch.equal(first["input_ids"], again["input_ids"]) and torch.equal(first["labels"], again["labels"])
    assert not torch.equal(first["labels"], masking(tiny_bert_path, seed=14)(rows)["labels"])
    assert not torch.equal(first["labels"].flip(0), masks(rows[::-1])["labels"])


def test_masks_follow_the_bert_recipe(tiny_bert_path: Path) -> None:
    rows = examples(500)
    masked = masking(tiny_bert_path, mlm_probability=0.3)(rows)
    original = torch.tensor([row["input_ids"] for row in rows])
    chosen = masked["labels"] != -100
    assert chosen[:, 1:-1].float().mean() == pytest.approx(0.3, abs=0.02)
    assert not chosen[:, 0].any() and not chosen[:, -1].any()
    assert torch.equal(masked["labels"][chosen], original[chosen])
    assert (masked["input_ids"][chosen] == 4).float().mean() == pytest.approx(0.8, abs=0.02)
    assert (masked["input_ids"] == original)[~chosen].all()
