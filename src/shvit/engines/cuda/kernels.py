"""SHViT's inference as Triton kernels.

A feature map is a matrix (b * h * w, channels) with one row per position of an image, as in channels_last. In memory,
channels are padded with zeros to a multiple of 8, so that every row is aligned to 16 bytes. Maps and weights are fp16
or bf16; sums, statistics, biases and depthwise weights are fp32.

The sides of Triton's tiles are powers of two, but SHViT's widths are not. A kernel that keeps all channels of its rows
on chip uses two tiles, `C0` and `C1` channels wide (`C1` may be 0): for 320 channels, they are 256 and 64 wide. Weights
are padded with zeros to the size of the tiles, so only reads of maps need masks.

Indices have 32 bits, so a map has fewer than 2**31 elements. Names in capitals are compile-time constants.
"""

import triton
import triton.language as tl

FAR_SCORE = tl.constexpr(-1.0e30)
"""The score of masked positions. It acts like minus infinity, but rows that are fully masked do not give NaN."""
PATCH = 64
"""Inner size of the first convolution as a matrix product: 3 rows, 3 columns and 3 channels, each padded to 4."""


@triton.jit
def _local(x, weight, bias, image, line, column, valid, channel, H, W, C: tl.constexpr, STRIDE: tl.constexpr):
    """Depthwise 3x3 convolution at these positions: fp32 (rows, channels). `weight` includes any identity branch."""
    known = channel < C
    total = tl.zeros([line.shape[0], channel.shape[0]], tl.float32)
    for tap in tl.static_range(9):
        y = line * STRIDE + tap // 3 - 1
        z = column * STRIDE + tap % 3 - 1
        inside = valid & (y >= 0) & (y < H) & (z >= 0) & (z < W)
        at = ((image * H + y) * W + z) * C
        pixel = tl.load(x + at[:, None] + channel[None, :], mask=inside[:, None] & known[None, :], other=0.0)
        total += pixel.to(tl.float32) * tl.load(weight + tap * C + channel, mask=known, other=0.0)[None, :]
    return total + tl.load(bias + channel, mask=known, other=0.0)[None, :]


@triton.jit
def center(
    images, image_stride, channel_stride, line_stride, column_stride, offset, padding, out, positions,
    H: tl.constexpr, W: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Subtract the integer `offset` of each channel from uint8 pixels (exact in fp16 and bf16), and add a zero channel.

    The border that the first convolution reads around the image is filled with `padding`: the mean minus `offset`.
    """
    HP: tl.constexpr = (H + 1) // 2 * 2 + 2
    WP: tl.constexpr = (W + 1) // 2 * 2 + 2
    position = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    image, line, column = position // (HP * WP), position // WP % HP - 1, position % WP - 1
    channel = tl.arange(0, 4)
    inside = (position < positions) & (line >= 0) & (line < H) & (column >= 0) & (column < W)
    start = images + image.to(tl.int64) * image_stride + line * line_stride + column * column_stride
    known = inside[:, None] & (channel < 3)[None, :]
    pixel = tl.load(start[:, None] + (channel * channel_stride)[None, :], mask=known, other=0).to(tl.float32)
    value = tl.where(inside[:, None], pixel - tl.load(offset + channel)[None, :], tl.load(padding + channel)[None, :])
    mask = (position < positions)[:, None]
    tl.store(out + position[:, None] * 4 + channel[None, :], value.to(out.dtype.element_ty), mask=mask)


@triton.jit
def stem(
    x, first, first_bias, second, second_bias, out, positions,
    H: tl.constexpr, W: tl.constexpr, C1: tl.constexpr, C2: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Two 3x3 convolutions of stride 2 with ReLU on the output of `center`; the map between them is never stored.

    The first convolution is computed again for each of the nine taps of the second. This takes 2.25 times the
    operations, but no memory traffic. The first convolution reads patches of 4 x 4 pixels, with zero weights for the
    last row and column, so that each row of a patch is 16 contiguous numbers.
    """
    H1: tl.constexpr = (H + 1) // 2
    W1: tl.constexpr = (W + 1) // 2
    H2: tl.constexpr = (H1 + 1) // 2
    W2: tl.constexpr = (W1 + 1) // 2
    dtype = first.dtype.element_ty
    position = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    image, line, column = position // (H2 * W2), position // W2 % H2, position % W2
    k = tl.arange(0, 64)
    middle, n = tl.arange(0, C1), tl.arange(0, N)
    kernel = tl.load(first + k[:, None] * C1 + middle[None, :])
    shift = tl.load(first_bias + middle)[None, :]
    patch = (k // 16) * ((2 * W1 + 2) * 4) + k % 16
    total = tl.zeros([BLOCK, N], tl.float32)
    for tap in range(9):
        y = line * 2 + tap // 3 - 1
        z = column * 2 + tap % 3 - 1
        exists = (position < positions) & (y >= 0) & (y < H1) & (z >= 0) & (z < W1)
        corner = ((image * (2 * H1 + 2) + 2 * y) * (W1 + 1) + z) * 8
        pixel = tl.load(x + corner[:, None] + patch[None, :], mask=exists[:, None] & (k < 48)[None, :], other=0.0)
        hidden = tl.maximum(tl.dot(pixel, kernel) + shift, 0.0)
        hidden = tl.where(exists[:, None], hidden, 0.0).to(dtype)
        total = tl.dot(hidden, tl.load(second + tap * C1 * N + middle[:, None] * N + n[None, :]), total)
    total = tl.maximum(total + tl.load(second_bias + n)[None, :], 0.0)
    mask = (position < positions)[:, None] & (n < C2)[None, :]
    tl.store(out + position[:, None] * C2 + n[None, :], total.to(dtype), mask=mask)


@triton.jit
def convolve(
    x, weight, bias, out, positions,
    H: tl.constexpr, W: tl.constexpr, K: tl.constexpr, N: tl.constexpr, KP: tl.constexpr, NP: tl.constexpr,
    RELU: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """3x3 convolution of stride 2 as a matrix product over taps and channels; `weight` is (9, KP, NP)."""
    H2: tl.constexpr = (H + 1) // 2
    W2: tl.constexpr = (W + 1) // 2
    STEPS: tl.constexpr = (K + BK - 1) // BK
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    position = tl.program_id(1) * BM + tl.arange(0, BM)
    image, line, column = position // (H2 * W2), position // W2 % H2, position % W2
    total = tl.zeros([BM, BN], tl.float32)
    for step in range(9 * STEPS):
        tap = step // STEPS
        k = step % STEPS * BK + tl.arange(0, BK)
        y = line * 2 + tap // 3 - 1
        z = column * 2 + tap % 3 - 1
        inside = (position < positions) & (y >= 0) & (y < H) & (z >= 0) & (z < W)
        at = ((image * H + y) * W + z) * K
        pixel = tl.load(x + at[:, None] + k[None, :], mask=inside[:, None] & (k < K)[None, :], other=0.0)
        total = tl.dot(pixel, tl.load(weight + (tap * KP + k)[:, None] * NP + n[None, :]), total)
    total += tl.load(bias + n)[None, :]
    if RELU:
        total = tl.maximum(total, 0.0)
    mask = (position < positions)[:, None] & (n < N)[None, :]
    tl.store(out + position[:, None] * N + n[None, :], total.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _blended(x, mixed, row, valid, k, K: tl.constexpr, ATTENDED: tl.constexpr, MIXED: tl.constexpr):
    """The channels from attention (`mixed`, already after ReLU), concatenated with the ReLU of the other channels."""
    passed = tl.load(x + row[:, None] * K + k[None, :], mask=valid[:, None] & (k >= ATTENDED) & (k < K), other=0.0)
    made = tl.load(mixed + row[:, None] * MIXED + k[None, :], mask=valid[:, None] & (k < ATTENDED), other=0.0)
    return tl.where((k < ATTENDED)[None, :], made, tl.maximum(passed.to(tl.float32), 0.0).to(made.dtype))


@triton.jit
def project(
    x, mixed, gate, weight, bias, residual, out, rows,
    K: tl.constexpr, N: tl.constexpr, NP: tl.constexpr, ATTENDED: tl.constexpr, MIXED: tl.constexpr,
    POSITIONS: tl.constexpr, RELU: tl.constexpr, SIGMOID: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """1x1 convolution; `weight` is (KP, NP). The `mixed` channels of attention can replace the first input channels,
    or a `gate` can multiply the input channels of each image. After the convolution, ReLU or sigmoid can be applied,
    and then `residual` can be added.
    """
    dtype = weight.dtype.element_ty
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    row = tl.program_id(1) * BM + tl.arange(0, BM)
    valid = row < rows
    total = tl.zeros([BM, BN], tl.float32)
    for k0 in range(0, K, BK):
        k = k0 + tl.arange(0, BK)
        if mixed is not None:
            pixel = _blended(x, mixed, row, valid, k, K, ATTENDED, MIXED)
        else:
            mask = valid[:, None] & (k < K)[None, :]
            pixel = tl.load(x + row[:, None] * K + k[None, :], mask=mask, other=0.0)
            if gate is not None:
                scale = tl.load(gate + (row // POSITIONS)[:, None] * K + k[None, :], mask=mask, other=0.0)
                pixel = (pixel.to(tl.float32) * scale.to(tl.float32)).to(dtype)
        total = tl.dot(pixel, tl.load(weight + k[:, None] * NP + n[None, :]), total)
    total += tl.load(bias + n)[None, :]
    if RELU:
        total = tl.maximum(total, 0.0)
    if SIGMOID:
        total = tl.sigmoid(total)
    mask = valid[:, None] & (n < N)[None, :]
    if residual is not None:
        total += tl.load(residual + row[:, None] * N + n[None, :], mask=mask, other=0.0).to(tl.float32)
    tl.store(out + row[:, None] * N + n[None, :], total.to(dtype), mask=mask)


@triton.jit
def feed_forward(
    x, local, local_bias, mixed, blend, blend_bias, expand, expand_bias, shrink, shrink_bias, out, partial, arrived,
    rows,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, C0: tl.constexpr, C1: tl.constexpr, ATTENDED: tl.constexpr,
    MIXED: tl.constexpr, HIDDEN: tl.constexpr, SPLITS: tl.constexpr,
    BM: tl.constexpr, BH: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """A residual feed-forward (1x1, ReLU, 1x1) whose hidden map stays on chip.

    Its input is `x`. With `local`, it is the depthwise convolution of `x`; with `mixed`, it is the sum of `x` and the
    attention projection. If there are few rows, `SPLITS` programs share the hidden channels of a row. The last program
    to finish adds up the partial sums in a fixed order, and resets the counter in `arrived` for the next run.
    """
    dtype = expand.dtype.element_ty
    CP: tl.constexpr = C0 + C1
    tile, split = tl.program_id(0), tl.program_id(1)
    row = tile * BM + tl.arange(0, BM)
    valid = row < rows
    c0, c1 = tl.arange(0, C0), C0 + tl.arange(0, C1 if C1 else 16)
    mask0, mask1 = valid[:, None] & (c0 < C)[None, :], valid[:, None] & (c1 < C)[None, :]
    if local is not None:
        image, line, column = row // (H * W), row // W % H, row % W
        y0 = _local(x, local, local_bias, image, line, column, valid, c0, H, W, C, 1)
        x0 = y0.to(dtype)
        if C1:
            y1 = _local(x, local, local_bias, image, line, column, valid, c1, H, W, C, 1)
            x1 = y1.to(dtype)
    else:
        x0 = tl.load(x + row[:, None] * C + c0[None, :], mask=mask0, other=0.0)
        y0 = x0.to(tl.float32)
        if C1:
            x1 = tl.load(x + row[:, None] * C + c1[None, :], mask=mask1, other=0.0)
            y1 = x1.to(tl.float32)
        if mixed is not None:
            y0 += tl.load(blend_bias + c0)[None, :]
            if C1:
                y1 += tl.load(blend_bias + c1)[None, :]
            for k0 in range(0, C, BK):
                k = k0 + tl.arange(0, BK)
                pixel = _blended(x, mixed, row, valid, k, C, ATTENDED, MIXED)
                y0 = tl.dot(pixel, tl.load(blend + k[:, None] * CP + c0[None, :]), y0)
                if C1:
                    y1 = tl.dot(pixel, tl.load(blend + k[:, None] * CP + c1[None, :]), y1)
            x0 = y0.to(dtype)
            if C1:
                x1 = y1.to(dtype)
    y0 += tl.load(shrink_bias + c0)[None, :]
    if C1:
        y1 += tl.load(shrink_bias + c1)[None, :]
    if SPLITS > 1:
        y0 = tl.where(split == 0, y0, 0.0)
        if C1:
            y1 = tl.where(split == 0, y1, 0.0)
    SHARE: tl.constexpr = (HIDDEN // BH + SPLITS - 1) // SPLITS * BH
    for h0 in range(split * SHARE, min(split * SHARE + SHARE, HIDDEN), BH):
        h = h0 + tl.arange(0, BH)
        hidden = tl.dot(x0, tl.load(expand + c0[:, None] * HIDDEN + h[None, :]))
        if C1:
            hidden = tl.dot(x1, tl.load(expand + c1[:, None] * HIDDEN + h[None, :]), hidden)
        hidden = tl.maximum(hidden + tl.load(expand_bias + h)[None, :], 0.0).to(dtype)
        y0 = tl.dot(hidden, tl.load(shrink + h[:, None] * CP + c0[None, :]), y0)
        if C1:
            y1 = tl.dot(hidden, tl.load(shrink + h[:, None] * CP + c1[None, :]), y1)
    if SPLITS > 1:
        lane = tile * BM + tl.arange(0, BM)
        stride = tl.num_programs(0) * BM * CP
        tl.store(partial + split * stride + lane[:, None] * CP + c0[None, :], y0)
        if C1:
            tl.store(partial + split * stride + lane[:, None] * CP + c1[None, :], y1)
        tl.debug_barrier()  # all sums of this program are written before it is counted
        if tl.atomic_add(arrived + tile, 1) == SPLITS - 1:
            y0 = tl.zeros([BM, C0], tl.float32)
            for other in range(SPLITS):
                at = partial + other * stride + lane[:, None] * CP
                y0 += tl.load(at + c0[None, :], cache_modifier=".cg")
            tl.store(out + row[:, None] * C + c0[None, :], y0.to(dtype), mask=mask0)
            if C1:
                y1 = tl.zeros([BM, C1], tl.float32)
                for other in range(SPLITS):
                    at = partial + other * stride + lane[:, None] * CP
                    y1 += tl.load(at + c1[None, :], cache_modifier=".cg")
                tl.store(out + row[:, None] * C + c1[None, :], y1.to(dtype), mask=mask1)
            tl.store(arrived + tile, 0)
    else:
        tl.store(out + row[:, None] * C + c0[None, :], y0.to(dtype), mask=mask0)
        if C1:
            tl.store(out + row[:, None] * C + c1[None, :], y1.to(dtype), mask=mask1)


@triton.jit
def attend(
    x, local, local_bias, query, query_bias, key, value, value_bias, out, mixed, images,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, ATTENDED: tl.constexpr, P: tl.constexpr, MIXED: tl.constexpr,
    EPS: tl.constexpr, TOGETHER: tl.constexpr, TILE: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Depthwise convolution, then single-head attention over the first `ATTENDED` channels of its output.

    Some programs write the depthwise convolution of all channels to `out`. The other programs compute attention. They
    repeat the convolution for the few channels that they need, and write the result, after ReLU, to `mixed`.

    A program computes `TILE` positions of a group of `TOGETHER` images. If the group fits in one tile, a mask restricts
    attention to the same image. Otherwise, keys and values are computed in tiles, and each tile rescales the softmax.
    """
    POSITIONS: tl.constexpr = H * W
    ROWS: tl.constexpr = TOGETHER * POSITIONS
    TILES: tl.constexpr = (ROWS + TILE - 1) // TILE
    dtype = query.dtype.element_ty
    group, part = tl.program_id(0) // TILES, tl.program_id(0) % TILES
    position = part * TILE + tl.arange(0, TILE)
    image, inner = position // POSITIONS, position % POSITIONS
    valid = (position < ROWS) & (group * TOGETHER + image < images)
    row = group * ROWS + position
    if tl.program_id(1) > 0:
        part_of = (tl.program_id(1) - 1) * BC + tl.arange(0, BC)
        passed = _local(
            x, local, local_bias, group * TOGETHER + image, inner // W, inner % W, valid, part_of, H, W, C, 1
        )
        inside = valid[:, None] & (part_of < C)[None, :]
        tl.store(out + row[:, None] * C + part_of[None, :], passed.to(dtype), mask=inside)
    else:
        channel, narrow = tl.arange(0, P), tl.arange(0, 16)
        to_query = tl.load(query + channel[:, None] * 16 + narrow[None, :])
        to_key = tl.load(key + channel[:, None] * 16 + narrow[None, :])
        to_value = tl.load(value + channel[:, None] * P + channel[None, :])
        query_shift = tl.load(query_bias + narrow)[None, :]
        value_shift = tl.load(value_bias + channel)[None, :]
        own = _local(x, local, local_bias, group * TOGETHER + image, inner // W, inner % W, valid, channel, H, W, C, 1)
        known = (channel < ATTENDED)[None, :]
        if TILES == 1:
            same = (image[:, None] == image[None, :]) & valid[None, :]
            own = tl.where(valid[:, None] & known, own, 0.0)
            mean = tl.sum(tl.where(same, tl.sum(own, 1)[None, :], 0.0), 1) / (POSITIONS * ATTENDED)
            off = tl.where(valid[:, None] & known, own - mean[:, None], 0.0)
            spread = tl.sum(tl.where(same, tl.sum(off * off, 1)[None, :], 0.0), 1) / (POSITIONS * ATTENDED)
            normal = (off * tl.rsqrt(spread + EPS)[:, None]).to(dtype)
            q = (tl.dot(normal, to_query) + query_shift).to(dtype)
            k = tl.dot(normal, to_key).to(dtype)
            v = (tl.dot(normal, to_value) + value_shift).to(dtype)
            score = tl.where(same, tl.dot(q, tl.trans(k)), FAR_SCORE)
            share = tl.exp(score - tl.max(score, 1)[:, None])
            result = tl.dot(share.to(dtype), v) / tl.sum(share, 1)[:, None]
        else:
            mean = 0.0
            for other in range(TILES):
                at = other * TILE + tl.arange(0, TILE)
                y = _local(x, local, local_bias, group, at // W, at % W, at < POSITIONS, channel, H, W, C, 1)
                mean += tl.sum(tl.where((at < POSITIONS)[:, None] & known, y, 0.0)) / (POSITIONS * ATTENDED)
            spread = 0.0
            for other in range(TILES):
                at = other * TILE + tl.arange(0, TILE)
                y = _local(x, local, local_bias, group, at // W, at % W, at < POSITIONS, channel, H, W, C, 1)
                off = tl.where((at < POSITIONS)[:, None] & known, y - mean, 0.0)
                spread += tl.sum(off * off) / (POSITIONS * ATTENDED)
            scale = tl.rsqrt(spread + EPS)
            normal = tl.where(known, (own - mean) * scale, 0.0).to(dtype)
            q = (tl.dot(normal, to_query) + query_shift).to(dtype)
            most = tl.full([TILE], FAR_SCORE, tl.float32)
            weight = tl.zeros([TILE], tl.float32)
            result = tl.zeros([TILE, P], tl.float32)
            for other in range(TILES):
                at = other * TILE + tl.arange(0, TILE)
                y = _local(x, local, local_bias, group, at // W, at % W, at < POSITIONS, channel, H, W, C, 1)
                normal = tl.where(known, (y - mean) * scale, 0.0).to(dtype)
                k = tl.dot(normal, to_key).to(dtype)
                v = (tl.dot(normal, to_value) + value_shift).to(dtype)
                score = tl.where((at < POSITIONS)[None, :], tl.dot(q, tl.trans(k)), FAR_SCORE)
                higher = tl.maximum(most, tl.max(score, 1))
                share = tl.exp(score - higher[:, None])
                fade = tl.exp(most - higher)
                weight = weight * fade + tl.sum(share, 1)
                result = tl.dot(share.to(dtype), v, result * fade[:, None])
                most = higher
            result = result / weight[:, None]
        mask = valid[:, None] & (channel < MIXED)[None, :]
        tl.store(mixed + row[:, None] * MIXED + channel[None, :], tl.maximum(result, 0.0).to(dtype), mask=mask)


@triton.jit
def depthwise(
    x, weight, bias, out, mean,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, STRIDE: tl.constexpr, RELU: tl.constexpr,
    BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Depthwise 3x3 convolution of one image. With `mean`, the mean of each output channel is written as well."""
    H2: tl.constexpr = (H + STRIDE - 1) // STRIDE
    W2: tl.constexpr = (W + STRIDE - 1) // STRIDE
    image = tl.program_id(0)
    channel = tl.program_id(1) * BC + tl.arange(0, BC)
    total = tl.zeros([BC], tl.float32)
    for start in range(0, H2 * W2, BM):
        position = start + tl.arange(0, BM)
        valid = position < H2 * W2
        y = _local(x, weight, bias, image, position // W2, position % W2, valid, channel, H, W, C, STRIDE)
        if RELU:
            y = tl.maximum(y, 0.0)
        mask = valid[:, None] & (channel < C)[None, :]
        at = (image * H2 * W2 + position) * C
        tl.store(out + at[:, None] + channel[None, :], y.to(out.dtype.element_ty), mask=mask)
        total += tl.sum(tl.where(mask, y, 0.0), 0)
    if mean is not None:
        tl.store(mean + image * C + channel, (total / (H2 * W2)).to(mean.dtype.element_ty), mask=channel < C)


@triton.jit
def classify(
    x, weight, bias, out, images,
    POSITIONS: tl.constexpr, K: tl.constexpr, N: tl.constexpr, NP: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Mean over positions, then the classifier. Writes logits in fp32."""
    dtype = weight.dtype.element_ty
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    image = tl.program_id(1) * BM + tl.arange(0, BM)
    total = tl.zeros([BM, BN], tl.float32)
    for k0 in range(0, K, BK):
        k = k0 + tl.arange(0, BK)
        mask = (image < images)[:, None] & (k < K)[None, :]
        pooled = tl.zeros([BM, BK], tl.float32)
        for position in range(POSITIONS):
            at = (image * POSITIONS + position) * K
            pooled += tl.load(x + at[:, None] + k[None, :], mask=mask, other=0.0).to(tl.float32)
        total = tl.dot((pooled / POSITIONS).to(dtype), tl.load(weight + k[:, None] * NP + n[None, :]), total)
    total += tl.load(bias + n)[None, :]
    tl.store(out + image[:, None] * N + n[None, :], total, mask=(image < images)[:, None] & (n < N)[None, :])
