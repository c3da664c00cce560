"""Narrow the feed-forward layers of a pre-trained transformer to 75%, tuned without labels.

The transformer is a masked language model of the heavy chains of human antibodies (RoBERTa of 4 layers and width 128,
Prihoda et al., 2022), whose weights come in a wheel of 7 MB. It is rebuilt in plain PyTorch and converted, and its
feed-forward layers are resized. Labels are not used: the sequences are made up, and the full network's outputs are what
the narrow one is tuned to, in two ways:

    points    only the points of the feed-forward axes, of a trapezoid, are tuned (`tune_partitions`)
    nodes     all nodes are trained at that width, on sequences drawn anew in every step

Measured: the cosine between the outputs of the narrow network and those of the full one, mean over positions. An output
is the logits of the 20 residues less their mean, all that a softmax sees of them. The sequences are others than those
that are tuned on; of the same four genes, and of two genes that none of those had.

    pip install --no-deps sapiens==1.0.5     (holds the weights)
    python -m bench.studies.antibody         bench/results/pretrained-transformer.json, four minutes
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import integral_nn as inn
from bench.zoo import page
from bench.zoo.packages import FOLDER

LETTERS = "ACDEFGHIKLMNPQRSTVWY"
START, PAD, END, FIRST, MASK = 0, 1, 2, 4, 24
LAYERS, WIDTH, HEADS, INSIDE, WORDS, PLACES = 4, 128, 8, 256, 25, 146
# Variable parts of human heavy chains as their genes, IGHV.., have them.
GENES = {
    "1-2": "QVQLVQSGAEVKKPGASVKVSCKASGYTFTGYYMHWVRQAPGQGLEWMGWINPNSGGTNYAQKFQGRVTMTRDTSISTAYMELSRLRSDDTAVYYCAR",
    "1-69": "QVQLVQSGAEVKKPGSSVKVSCKASGGTFSSYAISWVRQAPGQGLEWMGGIIPIFGTANYAQKFQGRVTITADESTSTAYMELSSLRSEDTAVYYCAR",
    "3-23": "EVQLLESGGGLVQPGGSLRLSCAASGFTFSSYAMSWVRQAPGKGLEWVSAISGSGGSTYYADSVKGRFTISRDNSKNTLYLQMNSLRAEDTAVYYCAK",
    "3-30": "QVQLVESGGGVVQPGRSLRLSCAASGFTFSSYGMHWVRQAPGKGLEWVAVISYDGSNKYYADSVKGRFTISRDNSKNTLYLQMNSLRAEDTAVYYCAK",
    "4-59": "QVQLQESGPGLVKPSETLSLTCTVSGGSISSYYWSWIRQPPGKGLEWIGYIYYSGSTNYNPSLKSRVTISVDTSKNQFSLKLSSVTAADTAVYYCAR",
    "5-51": "EVQLVQSGAEVKKPGESLKISCKGSGYSFTSYWIGWVRQMPGKGLEWMGIIYPGDSDTRYSPSFQGQVTISADKSISTAYLQWSSLKASDTAMYYCAR",
}
HELD_OUT, TAIL = ("1-2", "3-30"), "WGQGTLVTVSS"
TUNED_ON = tuple(name for name in GENES if name not in HELD_OUT)


class Layer(nn.Module):
    """Attention, then feed-forward, a norm after each."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.self_attn_layer_norm, self.final_layer_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.fc1, self.fc2 = nn.Linear(WIDTH, INSIDE), nn.Linear(INSIDE, WIDTH)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        layers = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (layer(x).unflatten(-1, (-1, WIDTH // HEADS)).transpose(1, 2) for layer in layers)
        y = F.scaled_dot_product_attention(q, k, v, hidden).transpose(1, 2).flatten(2)
        x = self.self_attn_layer_norm(x + self.out_proj(y))
        return self.final_layer_norm(x + self.fc2(F.gelu(self.fc1(x))))


class Antibody(nn.Module):
    """Tokens [B, L] to logits [B, L, 25]; places with `PAD` are not attended to."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens, self.embed_positions = nn.Embedding(WORDS, WIDTH), nn.Embedding(PLACES, WIDTH)
        self.emb_layer_norm, self.layers = nn.LayerNorm(WIDTH), nn.ModuleList(Layer() for _ in range(LAYERS))
        self.dense, self.layer_norm, self.head = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WORDS)

    def forward(self, tokens: Tensor) -> Tensor:
        there = tokens != PAD
        places = there.cumsum(1) * there + PAD
        x = self.emb_layer_norm(self.embed_tokens(tokens) + self.embed_positions(places)) * there[..., None]
        for layer in self.layers:
            x = layer(x, there[:, None, None])
        return self.head(self.layer_norm(F.gelu(self.dense(x))))


def load() -> Antibody:
    """The network with its published weights."""
    if FOLDER.exists() and str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    found = importlib.util.find_spec("sapiens")
    if found is None or found.origin is None:
        sys.exit("This study needs the weights in sapiens 1.0.5: pip install --no-deps sapiens==1.0.5")
    path = Path(found.origin).parent / "models" / "v1" / "checkpoint_vh.pt"
    with torch.serialization.safe_globals([argparse.Namespace]):  # the options of its training
        state = torch.load(path, map_location="cpu", weights_only=True)["model"]
    net = Antibody()
    names = {name: name.replace("decoder.sentence_encoder.", "").replace("self_attn.", "") for name in state}
    names = {old: new.replace("decoder.lm_head.", "") for old, new in names.items()}
    names |= {f"decoder.lm_head.{leaf}": f"head.{leaf}" for leaf in ("weight", "bias")}
    net.load_state_dict({names[name]: value for name, value in state.items()})
    return net.eval()


def sequences(count: int, genes: tuple[str, ...], seed: int, rate: float = 0.1, crossed: bool = False) -> Tensor:
    """Heavy chains [count, L]: a gene, or two crossed over, a random loop, the tail; padded.

    A share of residues is mutated, `rate` or (crossed) up to it; a tenth is masked.
    """
    draw = torch.Generator().manual_seed(seed)

    def number(below: int) -> int:
        return int(torch.randint(below, (1,), generator=draw))

    rows = []
    for _ in range(count):
        one, two, at = GENES[genes[number(len(genes))]], GENES[genes[number(len(genes))]], number(90)
        loop = "".join(LETTERS[number(20)] for _ in range(6 + number(11)))
        chain = (one[:at] + two[at:] if crossed else one) + loop + TAIL
        row = torch.tensor([LETTERS.index(c) + FIRST for c in chain])
        chance, share = torch.rand(len(row), generator=draw), torch.rand(1, generator=draw) if crossed else 1.0
        mutated = chance < rate * share
        row[mutated] = torch.randint(FIRST, FIRST + 20, (len(row),), generator=draw)[mutated]
        row[chance > 0.9] = MASK
        rows.append(torch.cat([torch.tensor([START]), row, torch.tensor([END])]))
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)


def residues(logits: Tensor) -> Tensor:
    """Logits of the 20 residues, less their mean."""
    logits = logits[..., FIRST : FIRST + 20]
    return logits - logits.mean(-1, keepdim=True)


def loss(model: nn.Module, tokens: Tensor, want: Tensor) -> Tensor:
    """Squared difference of outputs at residues."""
    there = tokens >= FIRST
    return F.mse_loss(residues(model(tokens))[there], want[there])


@torch.no_grad()
def cosine(net: nn.Module, teacher: nn.Module, tokens: Tensor) -> float:
    """Of outputs, mean over residues."""
    there = tokens >= FIRST
    have, want = (residues(f(tokens))[there] for f in (net, teacher))
    return float(F.cosine_similarity(have, want, dim=-1).mean())


def tune_points(net: nn.Module, width: float, steps: int) -> inn.IntegralNetwork:
    """Of the feed-forward axes, on 256 sequences."""
    tokens = sequences(256, TUNED_ON, 1, 0.4, crossed=True)
    with torch.no_grad():
        batches = [(x, residues(net(x))) for x in tokens.split(32)]
    model = inn.convert(net, tokens[:2], only="*fc1", quadrature="trapezoid", kernel="cubic")
    inn.tune_partitions(model, lambda m, batch: loss(m, *batch), batches, sizes=width, steps=steps)
    return model


def train_nodes(net: nn.Module, model: inn.IntegralNetwork, steps: int) -> None:
    """All nodes, at the current size, in eval mode (no dropout)."""
    optimizer = torch.optim.Adam(model.eval().parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        tokens = sequences(16, TUNED_ON, 1000 + step, 0.4, crossed=True)
        with torch.no_grad():
            want = residues(net(tokens))
        optimizer.zero_grad()
        value = loss(model, tokens, want)
        value.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            print(f"step {step + 1}: loss {float(value.detach()):.4f}", flush=True)


def main() -> None:
    """Tune in both ways, measure, write the record and docs/zoo.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=float, default=0.75)
    parser.add_argument("--steps", type=int, default=600, help="of training nodes; a quarter of it for points")
    options = parser.parse_args()
    torch.set_num_threads(1)
    net = load()
    tests = {"same genes": sequences(128, TUNED_ON, 2), "other genes": sequences(128, HELD_OUT, 3)}
    model = inn.convert(net, tests["same genes"][:2], only="*fc1")
    found: dict[str, dict[str, float]] = {}

    def measured(name: str, network: nn.Module) -> None:
        found[name] = {test: round(cosine(network.eval(), net, x), 4) for test, x in tests.items()}
        print(name, found[name], flush=True)

    model.resize(options.width)
    measured("equal cells, not tuned", model)
    train_nodes(net, model, options.steps)
    measured("nodes trained", model)
    measured("points tuned", tune_points(net, options.width, options.steps // 4))
    record = {"width": options.width, "steps": options.steps, "torch": torch.__version__, "cosine": found}
    page.PRETRAINED.write_text(json.dumps(record, indent=1) + "\n")
    page.redraw()


if __name__ == "__main__":
    main()
