"""What a pass through a built-in model keeps for its backward pass, and needs beside it, block by block. No torch.

Kept is what autograd's saved tensors hold: inputs of matrix products, norms, gates, and of attention or scan. Residual
sums and reshapes keep nothing. In numbers per token and block (D embed_dim, m mlp_dim; E d_inner, S d_state, H heads;
P = 2E + 2S + H outputs of in_proj; c = E + 2S channels of the convolution):

    ViT          8 D + 2 m              inputs of norms 2D and of linear layers 3D + m; q, k, v 3D; GELU's m
                 8 D + 4 m              with SwiGLU: w1 and w2 2m, silu m, their product m
    Adventurer   4 D + P + 3 c + 4 E    inputs of norms 2D, of in_proj and SwiGLU 2D; P; into and out of the convolution
                 + 4 m                  and its SiLU 3c; scan's output, gate, their product, normed 4E; SwiGLU 4m
      on a CPU   6 D + ... + 3 E + 4 m  norms keep 2D more, gate and norm E less; a short scan keeps its matrices
      long, CPU  6 D + P + E + 4 m      what lies between in_proj and out_proj is computed again, stretch by stretch
                                        (`models/mixing.py`); of each stretch, what it leaves to the next is kept

With bf16 autocast, matrix products and what they read take 2 bytes a number, norms, gate's product and the residual
stream 4. The score matrix of attention does not appear: fused attention never writes it.
"""

from dataclasses import dataclass
from typing import Literal

from patchscale.shapes import AdventurerShape, ViTShape

FLOAT32 = 4
Precision = Literal["fp32", "bf16"]
# How Adventurer works on a CPU, as in `models/mamba2.py` and `models/ssd/chunked.py`.
STRETCHES_FROM_ELEMENTS = 2**24
"""Outputs of in_proj in a pass from which on they are mixed stretch by stretch."""
ELEMENTS_PER_STRETCH = 2**20
"""Outputs of in_proj in a stretch, for each thread."""
CHUNK_SIZE = 64
"""Tokens of a chunk of the scan, about."""
CHUNKS_PER_SEGMENT = 16
"""The scan keeps its intermediate results if there are no more chunks than this."""
SCAN_BACKWARD = {2: 32, 4: 28}
"""Intermediate results of the scan's backward pass on a CPU, bytes per token and channel; keys: bytes of its inputs."""


@dataclass(frozen=True, kw_only=True)
class Branch:
    """One of the two branches of a block; bytes for all images of a pass."""

    kept: int
    """For the backward pass."""
    forward: int
    """At the largest moment of a forward pass that keeps nothing, beside its input and output."""
    backward: int
    """At the largest moment of the backward pass, beside what is kept; the stream's gradient is one of it."""


@dataclass(frozen=True, kw_only=True)
class Activations:
    """Equal blocks between an embedding and a norm; bytes for all images of a pass."""

    depth: int
    stream: int
    """The tokens between two blocks, float32."""
    block: int
    """What one block keeps for the backward pass."""
    block_forward: int
    """At the largest moment of a block's forward pass that keeps nothing, beside its input."""
    block_backward: int
    """At the largest moment of a block's backward pass, with what it keeps."""
    stem: int
    """Kept before the first block: images in bf16, intermediate results of an embedding of several layers."""
    stem_forward: int
    """At the largest moment before the first block in a forward pass that keeps nothing."""
    stem_backward: int
    """At the largest moment of its backward pass, with what it keeps."""
    tail: int
    """Kept after the last block: its output, what the last norm keeps and what the head reads."""
    tail_forward: int
    """At the largest moment after the last block in a forward pass that keeps nothing, with the tokens."""
    tail_backward: int
    """At the largest moment of its backward pass, with what it keeps."""
    held: int
    """Not needed any more in a forward pass that keeps nothing, but referred to in Python: timm's embedded tokens."""

    @property
    def ends(self) -> int:
        """Kept outside the blocks."""
        return self.stem + self.tail


def activations(
    shape: ViTShape | AdventurerShape,
    *,
    images: int,
    tokens: int,
    pixels: int,
    precision: Precision,
    cpu_threads: int | None,
) -> Activations:
    """Of a pass with `images` of `tokens` patches and `pixels` each; on a CPU with that many threads, else for None."""
    narrow = 2 if precision == "bf16" else FLOAT32
    prefix = shape.prefix_tokens if isinstance(shape, ViTShape) else 1
    class_token = shape.class_token if isinstance(shape, ViTShape) else True
    rows = images * (tokens + prefix)
    stream = FLOAT32 * shape.embed_dim * rows
    norm_kept, held = 1, 0  # Adventurer lets go of its embedded tokens
    if isinstance(shape, ViTShape):
        mixer, mlp = _vit(shape, rows, narrow)
        held = stream
    else:
        mixer, mlp = _adventurer(shape, images, tokens + 1, narrow, cpu_threads)
        norm_kept += cpu_threads is not None
    patches = narrow * shape.embed_dim * images * tokens
    image_copies = narrow * 3 * pixels * images if narrow < FLOAT32 else 0
    block = mixer.kept + mlp.kept
    return Activations(
        depth=shape.depth,
        stream=stream,
        block=block,
        # The MLP has its own input beside that of the block; in the backward pass it goes first.
        block_forward=max(mixer.forward, stream + mlp.forward),
        block_backward=max(block + mlp.backward, mixer.kept + mixer.backward),
        stem=image_copies,
        stem_forward=patches + max((2 if prefix else 1) * stream, image_copies),  # with other tokens, with positions
        stem_backward=image_copies + stream + (patches if narrow < FLOAT32 else 0),
        # A class token is a view of the norm's result, and if the head reads float32 it is kept as it is.
        tail=(norm_kept + (class_token and narrow == FLOAT32)) * stream,
        tail_forward=2 * stream,  # the norm's input and result
        tail_backward=(norm_kept + 2) * stream,  # gradients of both
        held=held,
    )


def _vit(shape: ViTShape, rows: int, narrow: int) -> tuple[Branch, Branch]:
    D, m = shape.embed_dim, shape.mlp_dim
    cast = narrow * D if narrow < FLOAT32 else 0
    mixer = Branch(
        kept=rows * (FLOAT32 * D + narrow * 5 * D + FLOAT32 * shape.num_heads),
        forward=rows * (FLOAT32 * D + narrow * 5 * D),
        backward=rows * (FLOAT32 * D + narrow * 6 * D),
    )
    # Without other tokens patches keep the strides of the convolution, and the backward pass of the norm copies them.
    strided = FLOAT32 * D if shape.prefix_tokens == 0 and narrow == FLOAT32 else 0
    gated = shape.mlp == "swiglu"
    mlp = Branch(
        kept=rows * (FLOAT32 * D + narrow * (D + (4 if gated else 2) * m)),
        forward=rows * (FLOAT32 * D + narrow * (4 if gated else 2) * m),
        backward=rows * (FLOAT32 * D + narrow * (2 if gated else 1) * m + cast + strided),
    )
    return mixer, mlp


def _adventurer(
    shape: AdventurerShape, images: int, length: int, narrow: int, cpu_threads: int | None
) -> tuple[Branch, Branch]:
    """`length` counts the class token; the mixer reads one token more, the mean."""
    D, m, E, S, H = shape.embed_dim, shape.mlp_dim, shape.d_inner, shape.d_state, shape.num_heads
    P, c = 2 * E + 2 * S + H, E + 2 * S
    rows = images * length
    read = images * (length + 1)
    on_cpu = cpu_threads is not None
    norm = FLOAT32 * (2 * D if on_cpu else D) + narrow * D  # what a norm keeps, and its result
    mlp = Branch(
        kept=rows * (norm + narrow * 4 * m + (narrow * D if narrow < FLOAT32 else 0)),  # cast for w1 and for w2
        forward=rows * (FLOAT32 * D + narrow * (D + 3 * m)),
        backward=rows * (FLOAT32 * D + narrow * 2 * m),
    )
    if cpu_threads is not None and rows * P >= STRETCHES_FROM_ELEMENTS:
        stretch = max(1, ELEMENTS_PER_STRETCH * cpu_threads // (images * P) // CHUNK_SIZE) * CHUNK_SIZE
        borders = -(-length // stretch) - 1
        left = images * borders * (FLOAT32 * S * E + narrow * (shape.d_conv - 1) * c)
        scan = _scan_on_cpu(shape, images, stretch, narrow)
        inputs = images * stretch * narrow * (P + 2 * c)
        mixing = scan.kept + scan.backward + inputs + images * stretch * (narrow * (c + 3 * E) + FLOAT32 * E)
        mixer = Branch(
            kept=rows * (norm + narrow * (P + E)) + left,
            forward=rows * (FLOAT32 * (D + E) + narrow * P) + left + inputs + scan.forward,
            backward=rows * (FLOAT32 * (D + E) + narrow * P) + mixing,
        )
    elif cpu_threads is not None:
        scan = _scan_on_cpu(shape, images, length + 1, narrow)
        chunk, padded = _in_chunks(length + 1)
        long = length + 1 > chunk * CHUNKS_PER_SEGMENT  # then the scan is computed again, segment by segment
        pads = not long and padded != length + 1  # the scan keeps copies of x, B and C
        mixer = Branch(
            kept=rows * (norm + narrow * E)
            + read * (narrow * (P + 2 * c + E + (0 if pads else c)) + FLOAT32 * E)
            + (0 if long else scan.kept),
            forward=rows * (FLOAT32 * D + narrow * P) + read * narrow * (P + 2 * c) + scan.forward,
            # Gate and norm have gone by then, with what they kept.
            backward=rows * FLOAT32 * D - read * FLOAT32 * E + scan.backward + (scan.kept if long else 0),
        )
    else:
        mixer = Branch(
            kept=rows * (norm + narrow * E) + read * (narrow * (P + 3 * c + 2 * E) + FLOAT32 * E),
            forward=rows * (FLOAT32 * D + narrow * P)
            + read * (narrow * (P + 2 * c + E) + (narrow * E if narrow < FLOAT32 else 0) + FLOAT32 * 2 * E),
            backward=rows * FLOAT32 * D + read * narrow * (P + c + E),
        )
    return mixer, mlp


def _in_chunks(length: int) -> tuple[int, int]:
    """(chunk, padded length) as the scan cuts a sequence."""
    chunks = max(1, round(length / CHUNK_SIZE))
    chunk = -(-length // chunks)
    return chunk, -(-length // chunk) * chunk


def _scan_on_cpu(shape: AdventurerShape, images: int, length: int, narrow: int) -> Branch:
    """The scan of one segment, which is at most `CHUNKS_PER_SEGMENT` chunks, by `models/ssd/chunked.py`."""
    E, S, H = shape.d_inner, shape.d_state, shape.num_heads
    chunk, padded = _in_chunks(length)
    rows = images * min(padded, chunk * CHUNKS_PER_SEGMENT)
    matrices = chunk * H  # decays of a token, and its scores, for all heads
    states = FLOAT32 * S * E // chunk
    kept = narrow * (matrices + 3 * E) + FLOAT32 * (matrices + chunk + 2 * H) + states
    if padded != length:
        kept += narrow * (E + 2 * S)
    casts = FLOAT32 * 2 * E if narrow < FLOAT32 else 0
    return Branch(
        kept=rows * kept,
        forward=rows * (kept + narrow * E + FLOAT32 * E + states + casts),
        backward=rows * SCAN_BACKWARD[narrow] * E,
    )
