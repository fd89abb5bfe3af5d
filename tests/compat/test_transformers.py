"""Models of transformers, called with labels: the loss is made inside the target."""

import pytest
import pytorch_lightning as pl
import torch

from lightning_hypernet import Hypernet
from lightning_hypernet.target.backends import BACKENDS
from tests.compat.exercise import MARKS, TOLERANCE, Case, curves, exercise, mean

transformers = pytest.importorskip("transformers")
pytestmark = MARKS
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "num_labels": 3}
DEALS = pytest.mark.parametrize("deal", ["inputs", "batch"])


class Labelled(pl.LightningModule):
    """As in transformers' own examples for Lightning: the batch is a mapping of the model's arguments."""

    def __init__(self, model, lr=3e-3):
        super().__init__()
        self.model, self.lr = model, lr

    def training_step(self, batch, batch_idx):
        outputs = self.model(**batch)
        self.log("train_loss", outputs.loss)
        return outputs.loss

    def validation_step(self, batch, batch_idx):
        outputs = self.model(**batch)
        self.log_dict({"loss": outputs.loss, "top": outputs.logits.max()})

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.lr)


def bert(**options):
    config = transformers.BertConfig(vocab_size=24, max_position_embeddings=8, **SIZES, **options)
    return Labelled(transformers.BertForSequenceClassification(config))


def sentences(count, size=8, words=23):
    """The label is that of the first token; the last tokens may be padding."""
    torch.manual_seed(5)
    batches = []
    for _ in range(count):
        ids = torch.randint(1, words + 1, (size, 6))
        mask = torch.ones_like(ids)
        mask[::2, 4:] = 0
        batches.append({"input_ids": ids * mask, "attention_mask": mask, "labels": ids[:, 0] % 3})
    return batches


def unlabelled(batch):
    return {name: value for name, value in batch.items() if name != "labels"}


@DEALS
def test_bert(deal, tmp_path):
    hypernet = exercise(Case(bert, sentences(2), unlabelled, options={"deal": deal}), tmp_path)
    (plain,) = hypernet.ensemble(1).materialize()
    plain.save_pretrained(tmp_path / "plain")
    stored, inputs = type(plain).from_pretrained(tmp_path / "plain"), unlabelled(sentences(1)[0])
    with torch.no_grad():
        torch.testing.assert_close(stored.eval()(**inputs).logits, plain.eval()(**inputs).logits)


def enable(model):
    """Activation checkpoints, by the name that the version has for them."""
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()


def test_bert_with_gradient_checkpoints(tmp_path):
    def make():
        module = bert(attn_implementation="eager")
        enable(module.model)
        return module

    exercise(Case(make, sentences(2), unlabelled), tmp_path)


def test_bert_learns_as_the_plain_one():
    """Without dropout both ways to deal out are one: the loss inside is a mean over examples."""

    def make():
        return bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)

    options = {"samples": 4, "generator": "default"}
    plain, ours = curves(Case(make, sentences(20, 32, 12), unlabelled, options=options), 300)
    start, end = mean(plain[:20]), mean(plain[-20:])
    assert end < 0.05 * start
    assert mean(ours[-20:]) < 1.1 * end
    assert mean(ours[40:60]) < 1.3 * mean(plain[40:60])
    _, dealt = curves(Case(make, sentences(20, 32, 12), unlabelled, options={"deal": "batch", **options}), 20)
    torch.testing.assert_close(dealt, ours[:20], **TOLERANCE)


def gpt2():
    config = transformers.GPT2Config(
        vocab_size=20, n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=19, pad_token_id=0,
        use_cache=False,
    )  # fmt: skip
    return Labelled(transformers.GPT2LMHeadModel(config))


def texts(count):
    torch.manual_seed(5)
    batches = []
    for _ in range(count):
        ids = (torch.randint(0, 20, (8, 1)) + torch.arange(8)) % 20
        batches.append({"input_ids": ids, "labels": ids.clone()})
    return batches


@DEALS
def test_gpt2(deal, tmp_path):
    hypernet = exercise(Case(gpt2, texts(2), unlabelled, options={"deal": deal}), tmp_path)
    # members write what the plain modules write; joined by the majority, token by token
    module = hypernet.train().eval()
    each = torch.stack([one.eval().generate(prompts(), **HOW) for one in module.materialize(module.member_population())])
    assert torch.equal(module.generate(prompts(), **HOW), each.mode(0).values)
    assert len({tuple(one.flatten().tolist()) for one in each}) > 1
    ensemble = module.ensemble(2).to_module()
    assert all(one.generate(prompts(), **HOW).shape == (8, 7) for one in ensemble.networks)


HOW = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}


def prompts():
    return texts(1)[0]["input_ids"][:, :3].clone()


def test_generate_after_forward_warns_of_nothing():
    hypernet = Hypernet(gpt2().model, members=2, generator="compact").eval()
    with torch.no_grad():
        hypernet(**texts(1)[0])
        hypernet.generate(prompts(), **HOW)


def vit():
    """The kind of problem is given, else the first call notes it in the configuration: state, which vmap can't have."""
    options = {"image_size": 16, "patch_size": 8, "problem_type": "single_label_classification"}
    return Labelled(transformers.ViTForImageClassification(transformers.ViTConfig(**options, **SIZES)))


def images(count):
    torch.manual_seed(5)
    return [{"pixel_values": torch.randn(8, 3, 16, 16), "labels": torch.randint(0, 3, (8,))} for _ in range(count)]


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch, of attention under vmap
@pytest.mark.parametrize(("deal", "execution"), [("inputs", "loop"), ("inputs", "vmap"), ("batch", "loop")])
def test_vit(deal, execution, tmp_path):
    hypernet = exercise(Case(vit, images(2), unlabelled, options={"deal": deal, "execution": execution}), tmp_path)
    assert type(hypernet.executor.backend) is type(BACKENDS[execution])  # vmap did not give way
