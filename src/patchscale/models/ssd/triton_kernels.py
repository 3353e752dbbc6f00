"""The Triton kernels of the scan, forward and backward; `triton.py` cuts the sequence and launches them.

B and C are read where they are, shared by the heads of a group; a program that sums their gradients over heads owns
what it sums into. There are no atomics, so results repeat bit by bit. All offsets are 64-bit: Triton takes sizes and
strides that fit into 32 bits as such, and their products then overflow without a word.

With u = dt x, and S the state before a chunk:

    y_l = sum_{s<=l} (C_l . B_s) exp(a_l - a_s) u_s + exp(a_l) S C_l + D x_l

The gradient of the log decay dt_t A is the flow past t: the sum, over paths from a write before t to a read at or after
t, of what the path adds to <dy, y>. Paths start and end in the chunk, or cross its start (reads), its end (writes), or
both (passing). What flows across the end of a chunk is writes + passing = <gradient of the state there, state there>;
it is known where segments end, and from there the passing of each chunk follows.

b batch   l tokens   h heads   p headdim   g groups   n d_state   Q tokens of a chunk
"""

# mypy: disable-error-code="no-untyped-def"
# (Triton gives its own meaning to annotations of kernels.)

import triton
import triton.language as tl

INDEX = tl.constexpr(tl.int64)
# Triton's interpreter (3.6 to 3.9) multiplies matrices of bfloat16 as if they were integers.
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
# Below exp(-20) what passes a whole chunk is less than the rounding of what starts or ends in it.
NOTHING_PASSES = tl.constexpr(-20.0)


# ---------------------------------------------------------------------------------------------------------------------
# Pieces of kernels


@triton.jit
def _batch_segment_other(segments, others):
    """What this program works on; programs of one segment, which share B and C, are neighbours."""
    program = tl.program_id(0)
    other = program % others
    segment = program // others % segments
    batch = program // others // segments
    return batch.to(INDEX), segment.to(INDEX), other.to(INDEX)


@triton.jit
def _chunks(segment, chunks_per_segment, length, Q: tl.constexpr):
    """First chunk and number of chunks of a segment, and number of chunks of the sequence."""
    first = segment * chunks_per_segment
    of_sequence = tl.cdiv(length, Q)
    return first, tl.minimum(chunks_per_segment, of_sequence - first), of_sequence


@triton.jit
def _rows(tokens, row_stride, length, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Offsets [tokens, BLOCK] of rows, and which of them exist."""
    columns = tl.arange(0, BLOCK)
    exist = (tokens < length)[:, None] & (columns < WIDTH)[None, :]
    return tokens[:, None] * row_stride + columns[None, :], exist


@triton.jit
def _load_rows(ptr, tokens, row_stride, length, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    offsets, exist = _rows(tokens, row_stride, length, WIDTH, BLOCK)
    return tl.load(ptr + offsets, mask=exist, other=0.0)


@triton.jit
def _store_rows(ptr, values, tokens, row_stride, length, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    offsets, exist = _rows(tokens, row_stride, length, WIDTH, BLOCK)
    tl.store(ptr + offsets, values, mask=exist)


@triton.jit
def _add_rows(ptr, values, is_first, tokens, row_stride, length, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Add to what this same program stored before; the first to be added finds nothing."""
    offsets, exist = _rows(tokens, row_stride, length, WIDTH, BLOCK)
    stored = tl.load(ptr + offsets, mask=exist & (is_first == 0), other=0.0)
    tl.store(ptr + offsets, stored + values, mask=exist)


@triton.jit
def _load_state(ptr, index, P: tl.constexpr, N: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr):
    """State number `index` of a contiguous [..., P, N], as [BLOCK_P, BLOCK_N]; zero where there are none."""
    if ptr is None:
        state = tl.zeros([BLOCK_P, BLOCK_N], tl.float32)
    else:
        state = _load_rows(ptr + index * (P * N), tl.arange(0, BLOCK_P), N, P, N, BLOCK_N)
    return state


@triton.jit
def _store_state(ptr, index, state, P: tl.constexpr, N: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr):
    _store_rows(ptr + index * (P * N), state, tl.arange(0, BLOCK_P), N, P, N, BLOCK_N)


@triton.jit
def _load_of_head(ptr, head):
    """A, D or dt_bias of a head in float32; zero if it is left out."""
    return tl.zeros([], tl.float32) if ptr is None else tl.load(ptr + head).to(tl.float32)


@triton.jit
def _softplus(v):
    """log(1 + exp(v)) with a small relative error also where it is small, which the hardware's logarithm has not."""
    z = tl.exp(-tl.abs(v))
    r = z / (2.0 + z)  # log(1 + z) = 2 artanh(r) with r <= 1/3
    q = r * r
    series = 1 + q * (1 / 3 + q * (1 / 5 + q * (1 / 7 + q * (1 / 9 + q * (1 / 11 + q * (1 / 13 + q * (1 / 15)))))))
    return tl.maximum(v, 0.0) + 2.0 * r * series


@triton.jit
def _load_steps(ptr, chunk, Q: tl.constexpr):
    """dt and a of a chunk, and a at its end, from the [chunks, 2, Q] of a head."""
    ptr += chunk * (2 * Q)
    return tl.load(ptr + tl.arange(0, Q)), tl.load(ptr + Q + tl.arange(0, Q)), tl.load(ptr + 2 * Q - 1)


@triton.jit
def _dot(a, b):
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")  # else float32 products would be TF32


# ---------------------------------------------------------------------------------------------------------------------
# Kernels


@triton.jit
def steps_kernel(
    dt_ptr, dt_stride_b, dt_stride_l, dt_stride_h,
    A_ptr, bias_ptr, steps_ptr,
    length, heads, chunks,
    Q: tl.constexpr, SOFTPLUS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """dt and a of one chunk of a block of heads; padding at the end writes nothing and decays nothing: dt = 0."""
    batch, chunk, block = _batch_segment_other(chunks, tl.cdiv(heads, BLOCK))
    head = block * BLOCK + tl.arange(0, BLOCK)
    token = chunk * Q + tl.arange(0, Q)
    exist = (token < length)[:, None] & (head < heads)[None, :]
    offsets = batch * dt_stride_b + token[:, None] * dt_stride_l + head[None, :] * dt_stride_h
    dt = tl.load(dt_ptr + offsets, mask=exist, other=0.0).to(tl.float32)
    if bias_ptr is not None:
        dt += tl.load(bias_ptr + head, mask=head < heads, other=0.0).to(tl.float32)[None, :]
    if SOFTPLUS:
        dt = _softplus(dt)
    dt = tl.where(exist, dt, 0.0)
    A = tl.load(A_ptr + head, mask=head < heads, other=0.0).to(tl.float32)
    a = tl.cumsum(dt * A[None, :], axis=0)
    to = ((batch * heads + head) * chunks + chunk)[None, :] * (2 * Q) + tl.arange(0, Q)[:, None]
    tl.store(steps_ptr + to, dt, mask=(head < heads)[None, :])
    tl.store(steps_ptr + to + Q, a, mask=(head < heads)[None, :])


@triton.jit
def segments_kernel(
    v_ptr, v_stride_b, v_stride_l, v_stride_h,
    k_ptr, k_stride_b, k_stride_l, k_stride_g,
    steps_ptr,
    states_ptr, decays_ptr,
    length, heads, heads_per_group, segments, chunks_per_segment,
    P: tl.constexpr, N: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, Q: tl.constexpr,
    REVERSE: tl.constexpr,
):  # fmt: skip
    """What each segment alone leaves behind it: writes x B^T in the order of time, or reads dy C^T against it.

    Stored with the segment that it is handed to, the next one or the one before, together with the decay on the way.
    """
    batch, segment, head = _batch_segment_other(segments - 1, heads)
    to_segment = segment + 1
    if REVERSE:
        segment, to_segment = to_segment, segment
    first_chunk, chunks, all_chunks = _chunks(segment, chunks_per_segment, length, Q)
    v_ptr += batch * v_stride_b + head * v_stride_h
    k_ptr += batch * k_stride_b + head // heads_per_group * k_stride_g
    steps_ptr += (batch * heads + head) * all_chunks * (2 * Q)

    state = tl.zeros([BLOCK_P, BLOCK_N], tl.float32)
    log_decay = tl.zeros([], tl.float32)
    for i in range(0, chunks):
        chunk = first_chunk + (chunks - 1 - i if REVERSE else i)
        tokens = chunk * Q + tl.arange(0, Q)
        dt, a, total = _load_steps(steps_ptr, chunk, Q)
        weight = tl.exp(a) if REVERSE else dt * tl.exp(total - a)
        v = _load_rows(v_ptr, tokens, v_stride_l, length, P, BLOCK_P)
        k = _load_rows(k_ptr, tokens, k_stride_l, length, N, BLOCK_N)
        state = state * tl.exp(total) + _dot(tl.trans((v * weight[:, None]).to(k.dtype)), k)
        log_decay += total

    to = (batch * segments + to_segment) * heads + head
    _store_state(states_ptr, to, state, P, N, BLOCK_P, BLOCK_N)
    tl.store(decays_ptr + to, tl.exp(log_decay))


@triton.jit
def pass_kernel(
    states_ptr, decays_ptr, heads, segments,
    SIZE: tl.constexpr, BLOCK: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Hand states from segment to segment, in place: state = decay * state of the segment before + what it left."""
    batch, block, head = _batch_segment_other(tl.cdiv(SIZE, BLOCK), heads)
    entries = block * BLOCK + tl.arange(0, BLOCK)
    first = batch * segments * heads + head
    state = tl.load(states_ptr + (first + (segments - 1 if REVERSE else 0) * heads) * SIZE + entries, entries < SIZE)
    for i in tl.range(1, segments, num_stages=4):
        at = first + (segments - 1 - i if REVERSE else i) * heads
        ptrs = states_ptr + at * SIZE + entries
        state = tl.load(decays_ptr + at) * state + tl.load(ptrs, mask=entries < SIZE)
        tl.store(ptrs, state, mask=entries < SIZE)


@triton.jit
def forward_kernel(
    x_ptr, x_stride_b, x_stride_l, x_stride_h,
    B_ptr, B_stride_b, B_stride_l, B_stride_g,
    C_ptr, C_stride_b, C_stride_l, C_stride_g,
    steps_ptr, D_ptr,
    states_ptr, y_ptr, final_state_ptr,
    length, heads, heads_per_group, segments, chunks_per_segment,
    P: tl.constexpr, N: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, Q: tl.constexpr,
):  # fmt: skip
    """y of one segment of one head."""
    batch, segment, head = _batch_segment_other(segments, heads)
    first_chunk, chunks, all_chunks = _chunks(segment, chunks_per_segment, length, Q)
    x_ptr += batch * x_stride_b + head * x_stride_h
    B_ptr += batch * B_stride_b + head // heads_per_group * B_stride_g
    C_ptr += batch * C_stride_b + head // heads_per_group * C_stride_g
    y_ptr += (batch * length * heads + head) * P
    steps_ptr += (batch * heads + head) * all_chunks * (2 * Q)
    D = _load_of_head(D_ptr, head)
    past = tl.arange(0, Q)[:, None] >= tl.arange(0, Q)[None, :]  # l, s

    state = _load_state(states_ptr, (batch * segments + segment) * heads + head, P, N, BLOCK_P, BLOCK_N)
    for i in range(0, chunks):
        tokens = (first_chunk + i) * Q + tl.arange(0, Q)
        dt, a, total = _load_steps(steps_ptr, first_chunk + i, Q)
        x = _load_rows(x_ptr, tokens, x_stride_l, length, P, BLOCK_P)
        B = _load_rows(B_ptr, tokens, B_stride_l, length, N, BLOCK_N)
        C = _load_rows(C_ptr, tokens, C_stride_l, length, N, BLOCK_N)

        # Mask before exp: for tokens to come the exponent is positive, and exp of it may overflow.
        decay = tl.exp(tl.where(past, a[:, None] - a[None, :], float("-inf")))
        weights = _dot(C, tl.trans(B)) * decay * dt[None, :]
        y = _dot(C, tl.trans(state).to(C.dtype)) * tl.exp(a)[:, None]
        y += _dot(weights.to(x.dtype), x)
        y += D * x
        _store_rows(y_ptr, y.to(x.dtype), tokens, heads * P, length, P, BLOCK_P)

        writes = (x * (dt * tl.exp(total - a))[:, None]).to(x.dtype)
        state = state * tl.exp(total) + _dot(tl.trans(writes), B)

    if final_state_ptr is not None:  # noqa: SIM102 (this is decided when compiling, the rest when running)
        if segment == segments - 1:
            _store_state(final_state_ptr, batch * heads + head, state, P, N, BLOCK_P, BLOCK_N)


@triton.jit
def backward_kernel(
    dy_ptr, dy_stride_b, dy_stride_l, dy_stride_h,
    x_ptr, x_stride_b, x_stride_l, x_stride_h,
    B_ptr, B_stride_b, B_stride_l, B_stride_g,
    C_ptr, C_stride_b, C_stride_l, C_stride_g,
    dt_ptr, dt_stride_b, dt_stride_l, dt_stride_h,
    steps_ptr, A_ptr, bias_ptr, D_ptr,
    dstates_ptr, reads_ptr, reads_sum_ptr, writes_ptr, writes_sum_ptr, flow_ptr,
    dx_ptr, ddt_ptr, sums_ptr, dinitial_ptr,
    length, heads, heads_per_group, segments, chunks_per_segment,
    P: tl.constexpr, N: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, Q: tl.constexpr,
    SOFTPLUS: tl.constexpr,
):  # fmt: skip
    """dx, d dt, dA, dD and d dt_bias of one segment of one head, against the order of time.

    Tiles over pairs of tokens are [s, l]: written at s, read at l.
    """
    batch, segment, head = _batch_segment_other(segments, heads)
    first_chunk, chunks, all_chunks = _chunks(segment, chunks_per_segment, length, Q)
    x_ptr += batch * x_stride_b + head * x_stride_h
    dy_ptr += batch * dy_stride_b + head * dy_stride_h
    B_ptr += batch * B_stride_b + head // heads_per_group * B_stride_g
    C_ptr += batch * C_stride_b + head // heads_per_group * C_stride_g
    dt_ptr += batch * dt_stride_b + head * dt_stride_h
    steps_ptr += (batch * heads + head) * all_chunks * (2 * Q)
    of_head = batch * length * heads + head
    A, bias, D = _load_of_head(A_ptr, head), _load_of_head(bias_ptr, head), _load_of_head(D_ptr, head)
    s, t = tl.arange(0, Q)[:, None], tl.arange(0, Q)[None, :]
    at = (batch * segments + segment) * heads + head

    dstate = _load_state(dstates_ptr, at, P, N, BLOCK_P, BLOCK_N)
    flow = tl.load(flow_ptr + at)
    dA = tl.zeros([], tl.float32)
    dD = tl.zeros([], tl.float32)
    dbias = tl.zeros([], tl.float32)
    for i in range(0, chunks):
        chunk = first_chunk + chunks - 1 - i
        tokens = chunk * Q + tl.arange(0, Q)
        dt, a, total = _load_steps(steps_ptr, chunk, Q)
        x = _load_rows(x_ptr, tokens, x_stride_l, length, P, BLOCK_P)
        dy = _load_rows(dy_ptr, tokens, dy_stride_l, length, P, BLOCK_P)
        B = _load_rows(B_ptr, tokens, B_stride_l, length, N, BLOCK_N)
        C = _load_rows(C_ptr, tokens, C_stride_l, length, N, BLOCK_N)

        # Gradient of u = dt x, from the states after the chunk and from the reads in it.
        decay = tl.exp(tl.where(s <= t, a[None, :] - a[:, None], float("-inf")))
        weights = _dot(B, tl.trans(C)) * decay
        du = _dot(B, tl.trans(dstate).to(B.dtype)) * tl.exp(total - a)[:, None]
        du += _dot(weights.to(dy.dtype), dy)
        dx = dt[:, None] * du + D * dy
        _store_rows(dx_ptr + of_head * P, dx.to(x.dtype), tokens, heads * P, length, P, BLOCK_P)

        # Gradient of the log decay at t: what flows from s < t to l >= t, with s or l or both in other chunks too.
        reads = tl.load(reads_ptr + of_head + tokens * heads, mask=tokens < length, other=0.0)
        writes = tl.load(writes_ptr + of_head + tokens * heads, mask=tokens < length, other=0.0)
        of_chunk = (batch * heads + head) * all_chunks + chunk
        passing = tl.where(total > NOTHING_PASSES, flow - tl.load(writes_sum_ptr + of_chunk), 0.0)
        flow = passing + tl.load(reads_sum_ptr + of_chunk)
        paths = weights * dt[:, None] * _dot(x, tl.trans(dy))
        paths = tl.cumsum(paths, axis=1, reverse=True)  # s, t: the sum over l >= t
        dlog = tl.sum(tl.where(s < t, paths + writes[:, None], 0.0), axis=0)
        dlog += tl.sum(tl.where(s >= t, reads[:, None], 0.0), axis=0) + passing

        ddt = tl.sum(x * du, axis=1) + A * dlog
        if SOFTPLUS:
            raw = tl.load(dt_ptr + tokens * dt_stride_l, mask=tokens < length, other=0.0).to(tl.float32)
            ddt *= tl.sigmoid(raw + bias)
        ddt = tl.where(tokens < length, ddt, 0.0)
        tl.store(ddt_ptr + of_head + tokens * heads, ddt, mask=tokens < length)
        dA += tl.sum(dt * dlog)
        dD += tl.sum(x.to(tl.float32) * dy)
        dbias += tl.sum(ddt)

        reading = (dy * tl.exp(a)[:, None]).to(dy.dtype)
        dstate = dstate * tl.exp(total) + _dot(tl.trans(reading), C)

    tl.store(sums_ptr + at * 3, dA)
    tl.store(sums_ptr + at * 3 + 1, dD)
    tl.store(sums_ptr + at * 3 + 2, dbias)
    if segment == 0:
        _store_state(dinitial_ptr, batch * heads + head, dstate, P, N, BLOCK_P, BLOCK_N)


@triton.jit
def backward_keys_kernel(
    v_ptr, v_stride_b, v_stride_l, v_stride_h,
    k_ptr, k_stride_b, k_stride_l, k_stride_g,
    other_v_ptr, other_v_stride_b, other_v_stride_l, other_v_stride_h,
    other_k_ptr, other_k_stride_b, other_k_stride_l, other_k_stride_g,
    steps_ptr,
    states_ptr, border_states_ptr,
    dk_ptr, crossing_ptr, crossing_sum_ptr, flow_ptr,
    length, heads, heads_per_group, segments, chunks_per_segment, heads_per_block,
    P: tl.constexpr, N: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, Q: tl.constexpr,
    REVERSE: tl.constexpr,
):  # fmt: skip
    """dC (v = dy, k = C, others x and B) in the order of time, or dB (v = x, k = B, others dy and C) against it.

    Of one segment, and summed over a block of heads. Also `crossing`, of each token the part of <dC, C> or <dB, B> that
    crosses the border of its chunk, and its sum over the chunk: that once more, from the very terms that update states.
    """
    blocks = heads // heads_per_block
    batch, segment, block = _batch_segment_other(segments, blocks)
    first_chunk, chunks, all_chunks = _chunks(segment, chunks_per_segment, length, Q)
    group = block * heads_per_block // heads_per_group
    k_ptr += batch * k_stride_b + group * k_stride_g
    other_k_ptr += batch * other_k_stride_b + group * other_k_stride_g
    dk_ptr += (batch * length * blocks + block) * N
    row, column = tl.arange(0, Q)[:, None], tl.arange(0, Q)[None, :]

    for j in range(0, heads_per_block):
        head = block * heads_per_block + j
        head_v_ptr = v_ptr + batch * v_stride_b + head * v_stride_h
        head_other_v_ptr = other_v_ptr + batch * other_v_stride_b + head * other_v_stride_h
        head_steps_ptr = steps_ptr + (batch * heads + head) * all_chunks * (2 * Q)
        head_crossing_ptr = crossing_ptr + batch * length * heads + head
        at = (batch * segments + segment) * heads + head

        state = _load_state(states_ptr, at, P, N, BLOCK_P, BLOCK_N)
        for i in range(0, chunks):
            chunk = first_chunk + (chunks - 1 - i if REVERSE else i)
            tokens = chunk * Q + tl.arange(0, Q)
            dt, a, total = _load_steps(head_steps_ptr, chunk, Q)
            reading, writing = tl.exp(a), dt * tl.exp(total - a)
            v = _load_rows(head_v_ptr, tokens, v_stride_l, length, P, BLOCK_P)
            k = _load_rows(k_ptr, tokens, k_stride_l, length, N, BLOCK_N)
            other_v = _load_rows(head_other_v_ptr, tokens, other_v_stride_l, length, P, BLOCK_P)
            other_k = _load_rows(other_k_ptr, tokens, other_k_stride_l, length, N, BLOCK_N)

            weight, other_weight = reading, writing
            if REVERSE:
                weight, other_weight = writing, reading
            update = _dot(tl.trans((v * weight[:, None]).to(v.dtype)), k)
            tl.store(crossing_sum_ptr + (batch * heads + head) * all_chunks + chunk, tl.sum(state * update))
            dk = _dot(v, state.to(v.dtype)) * weight[:, None]
            tl.store(head_crossing_ptr + tokens * heads, tl.sum(dk * k, axis=1), mask=tokens < length)
            if REVERSE:
                decay = tl.exp(tl.where(row <= column, a[None, :] - a[:, None], float("-inf"))) * dt[:, None]
            else:
                decay = tl.exp(tl.where(row >= column, a[:, None] - a[None, :], float("-inf"))) * dt[None, :]
            dscores = _dot(v, tl.trans(other_v)) * decay
            dk += _dot(dscores.to(k.dtype), other_k)
            _add_rows(dk_ptr, dk, j == 0, tokens, blocks * N, length, N, BLOCK_N)

            update = _dot(tl.trans((other_v * other_weight[:, None]).to(v.dtype)), other_k)
            state = state * tl.exp(total) + update

        if not REVERSE:
            dstate = _load_state(border_states_ptr, at, P, N, BLOCK_P, BLOCK_N)
            tl.store(flow_ptr + at, tl.sum(state * dstate))
        tl.debug_barrier()  # the next head adds to what this one stored
