"""The C functions of an integer network, one text an operation.

``@X@`` is a type's width in bits and ``$X`` the type; a function is written once for each set of widths that
a network uses.
"""

import re

STRUCTS = """\
/* A map's entries: channel c at place p stands at c * channel + p * place. */
struct view { int32_t channels, places, channel, place; };

/* ((x * M + 2^(k-1)) >> k) + B, with M and B of each channel; k <= 0: (x * M << -k) + B. */
struct scale { const FACTOR *M; const OFFSET *B; int32_t k; };

/* A window that slides over a map; pairs are (height, width). */
struct window {
    int32_t channels, in[2], out[2], kernel[2], stride[2], padding[2], dilation[2];
};

/* A convolution or linear layer. weights: columns, one weight for each output channel of a group, of offset
 * binary codes, lowest bit first, in the order [input channel][kernel row][kernel column]. inputs, outputs:
 * channels of a group. */
struct layer {
    const uint8_t *weights;
    const OFFSET *bias;
    int32_t bits, groups, inputs, outputs;
    struct window window;
    struct view view;
};

/* A neuron, and the norm before it. unit: a stored membrane m means m << unit. */
struct neuron {
    struct scale scale;
    struct view view, residual;
    int64_t ratio, threshold, by, low, high;
    int32_t leak, leak_shift, shift, unit;
};

/* A walk over entries: steps in both arrays for each dimension. */
struct walk { int32_t rank, size[9], from[9], to[9], from_start, to_start; };
"""

HELPERS = {
    "right": """\
/* x / 2^k, rounded down: C leaves a right shift of negative numbers to the compiler. */
static inline $W right_@W@($W x, int32_t k)
{
    return x < 0 ? ($W)~(~x >> k) : ($W)(x >> k);
}
""",
    "rounded": """\
/* x / 2^k, halves up. */
static inline $W rounded_@W@($W x, int32_t k)
{
    return k > 0 ? right_@W@(x + (($W)1 << (k - 1)), k) : x;
}
""",
    "rescaled": """\
static inline $W rescaled_@W@($W x, const struct scale *s, int32_t c)
{
    x *= s->M[c];
    return (s->k > 0 ? rounded_@W@(x, s->k) : x * (($W)1 << -s->k)) + ($W)s->B[c];
}
""",
    "clamped": """\
static inline $W clamped_@W@($W x, $W low, $W high)
{
    return x < low ? low : x > high ? high : x;
}
""",
    "column": """\
/* One weight for each output channel. */
static void column_of(const struct layer *l, int32_t number)
{
    const uint8_t *weights = l->weights;
    const int32_t bits = l->bits, outputs = l->outputs, half = 1 << (bits - 1), mask = (1 << bits) - 1;
    const int32_t first = number * outputs * bits;
    if (bits == 4 && first % 8 == 0 && outputs % 2 == 0) {
        for (int32_t o = 0; o < outputs; o += 2) {
            column[o] = (int8_t)((weights[first / 8 + o / 2] & 15) - 8);
            column[o + 1] = (int8_t)((weights[first / 8 + o / 2] >> 4) - 8);
        }
        return;
    }
    for (int32_t o = 0; o < outputs; o++) {
        const int32_t bit = first + o * bits;
        const int32_t two = weights[bit / 8] | weights[bit / 8 + 1] << 8;
        column[o] = (int8_t)(((two >> bit % 8) & mask) - half);
    }
}
""",
}


def _walked(statement: str) -> str:
    """The end of a function that does something at every entry of a walk: in[i] meets out[o]."""
    return f"""\
    int32_t at[9] = {{0}}, d = 0, i = w->from_start, o = w->to_start;
    while (d >= 0) {{
        {statement}
        for (d = w->rank - 1; d >= 0; d--) {{
            i += w->from[d];
            o += w->to[d];
            if (++at[d] < w->size[d])
                break;
            i -= w->from[d] * w->size[d];
            o -= w->to[d] * w->size[d];
            at[d] = 0;
        }}
    }}
}}
"""


FUNCTIONS = {
    "levels": """\
/* Bytes of an image to codes, by a table of each channel. */
static void levels_@OUT@(const $OUT *table, int32_t channels, int32_t places, const uint8_t *image, $OUT *out)
{
    for (int32_t c = 0; c < channels; c++)
        for (int32_t p = 0; p < places; p++)
            out[c * places + p] = table[c * 256 + image[c * places + p]];
}
""",
    "clipped": """\
/* Counts of events to codes. */
static void clipped_@IN@_@OUT@(int32_t n, int32_t limit, const $IN *frame, $OUT *out)
{
    for (int32_t i = 0; i < n; i++)
        out[i] = ($OUT)(frame[i] < -limit ? -limit : frame[i] > limit ? limit : frame[i]);
}
""",
    "layer": """\
/* For every spike of the input, the columns of weights that it meets are added. out: places, channels. */
static void layer_@IN@_@OUT@(const struct layer *l, const $IN *restrict in, $OUT *restrict out)
{
    const struct window *w = &l->window;
    const int32_t outputs = l->outputs, all = l->groups * outputs, area = w->kernel[0] * w->kernel[1];
    for (int32_t p = 0; p < w->out[0] * w->out[1]; p++)
        for (int32_t o = 0; o < all; o++)
            out[p * all + o] = l->bias ? ($OUT)l->bias[o] : 0;
    for (int32_t c = 0; c < l->groups * l->inputs; c++) {
        const $IN *map = in + c * l->view.channel;
        int32_t events = 0;
        for (int32_t y = 0; y < w->in[0]; y++)
            for (int32_t x = 0; x < w->in[1]; x++)
                if (map[(y * w->in[1] + x) * l->view.place]) {
                    event_y[events] = (PLACE)y;
                    event_x[events++] = (PLACE)x;
                }
        for (int32_t k = 0; events && k < area; k++) {
            const int32_t down = w->padding[0] - k / w->kernel[1] * w->dilation[0];
            const int32_t right = w->padding[1] - k % w->kernel[1] * w->dilation[1];
            column_of(l, c * area + k);
            for (int32_t e = 0; e < events; e++) {
                int32_t y = event_y[e] + down, x = event_x[e] + right;
                const $OUT value = map[(event_y[e] * w->in[1] + event_x[e]) * l->view.place];
                $OUT *sums;
                if (y < 0 || x < 0)
                    continue;
                if (w->stride[0] > 1 || w->stride[1] > 1) {
                    if (y % w->stride[0] || x % w->stride[1])
                        continue;
                    y /= w->stride[0];
                    x /= w->stride[1];
                }
                if (y >= w->out[0] || x >= w->out[1])
                    continue;
                sums = out + (y * w->out[1] + x) * all + c / l->inputs * outputs;
                if (value == 1)
                    for (int32_t o = 0; o < outputs; o++)
                        sums[o] += column[o];
                else
                    for (int32_t o = 0; o < outputs; o++)
                        sums[o] += value * column[o];
            }
        }
    }
}
""",
    "norm": """\
/* The multiplier and offset of each channel, then saturation; out keeps the order of in and may be it. */
static void norm_@IN@_@OUT@_@W@(const struct scale *s, const struct view *v, int64_t low, int64_t high,
                                const $IN *in, $OUT *out)
{
    for (int32_t c = 0; c < v->channels; c++)
        for (int32_t p = 0; p < v->places; p++) {
            const int32_t i = c * v->channel + p * v->place;
            out[i] = ($OUT)clamped_@W@(rescaled_@W@(($W)in[i], s, c), ($W)low, ($W)high);
        }
}
""",
    "max_pool": """\
/* The largest of each window; places outside of the map do not count. */
static void max_pool_@IN@(const struct window *w, const $IN *restrict in, $IN *restrict out)
{
    for (int32_t c = 0; c < w->channels; c++, in += w->in[0] * w->in[1])
        for (int32_t y = 0; y < w->out[0]; y++)
            for (int32_t x = 0; x < w->out[1]; x++) {
                $IN most = INT@IN@_MIN;
                for (int32_t i = 0; i < w->kernel[0]; i++)
                    for (int32_t j = 0; j < w->kernel[1]; j++) {
                        const int32_t u = y * w->stride[0] - w->padding[0] + i * w->dilation[0];
                        const int32_t v = x * w->stride[1] - w->padding[1] + j * w->dilation[1];
                        if (u >= 0 && v >= 0 && u < w->in[0] && v < w->in[1] && in[u * w->in[1] + v] > most)
                            most = in[u * w->in[1] + v];
                    }
                *out++ = most;
            }
}
""",
    "sum_pool": """\
/* The sum of each window. */
static void sum_pool_@IN@_@OUT@(const struct window *w, const $IN *restrict in, $OUT *restrict out)
{
    for (int32_t c = 0; c < w->channels; c++, in += w->in[0] * w->in[1])
        for (int32_t y = 0; y < w->out[0]; y++)
            for (int32_t x = 0; x < w->out[1]; x++) {
                $OUT sum = 0;
                for (int32_t i = 0; i < w->kernel[0]; i++)
                    for (int32_t j = 0; j < w->kernel[1]; j++) {
                        const int32_t u = y * w->stride[0] - w->padding[0] + i;
                        const int32_t v = x * w->stride[1] - w->padding[1] + j;
                        if (u >= 0 && v >= 0 && u < w->in[0] && v < w->in[1])
                            sum = ($OUT)(sum + in[u * w->in[1] + v]);
                    }
                *out++ = sum;
            }
}
""",
    "adaptive_max": """\
/* The largest of windows that cover a map: rows floor(y H / h) to ceil((y + 1) H / h). */
static void adaptive_max_@IN@(const struct window *w, const $IN *restrict in, $IN *restrict out)
{
    const int32_t H = w->in[0], W = w->in[1], h = w->out[0], v = w->out[1];
    for (int32_t c = 0; c < w->channels; c++, in += H * W)
        for (int32_t y = 0; y < h; y++)
            for (int32_t x = 0; x < v; x++) {
                $IN most = in[y * H / h * W + x * W / v];
                for (int32_t i = y * H / h; i < ((y + 1) * H + h - 1) / h; i++)
                    for (int32_t j = x * W / v; j < ((x + 1) * W + v - 1) / v; j++)
                        if (in[i * W + j] > most)
                            most = in[i * W + j];
                *out++ = most;
            }
}
""",
    "add": """\
static void add_@A@_@B@_@OUT@_@W@(int32_t n, int64_t f, int64_t g, const $A *restrict a,
                                  const $B *restrict b, $OUT *restrict out)
{
    for (int32_t i = 0; i < n; i++)
        out[i] = ($OUT)(($W)a[i] * ($W)f + ($W)b[i] * ($W)g);
}
""",
    "mul": """\
static void mul_@A@_@B@_@OUT@_@W@(int32_t n, const $A *restrict a, const $B *restrict b, $OUT *restrict out)
{
    for (int32_t i = 0; i < n; i++)
        out[i] = ($OUT)(($W)a[i] * ($W)b[i]);
}
""",
    "affine": """\
static void affine_@IN@_@OUT@_@W@(int32_t n, int64_t factor, int64_t offset, const $IN *restrict in,
                                  $OUT *restrict out)
{
    for (int32_t i = 0; i < n; i++)
        out[i] = ($OUT)(($W)in[i] * ($W)factor + ($W)offset);
}
""",
    "matmul": """\
/* Matrices (rows, inner) by (inner, columns), pair by pair: for every spike of a, a row of b is added. */
static void matmul_@A@_@B@_@OUT@(int32_t matrices, int32_t rows, int32_t inner, int32_t columns,
                                 const $A *restrict a, const $B *restrict b, $OUT *restrict out)
{
    for (int32_t i = 0; i < matrices * rows * columns; i++)
        out[i] = 0;
    for (int32_t m = 0; m < matrices * rows; m++)
        for (int32_t k = 0; k < inner; k++) {
            const $A value = a[m * inner + k];
            const $B *row = b + (m / rows * inner + k) * columns;
            for (int32_t j = 0; value && j < columns; j++)
                out[m * columns + j] = ($OUT)(out[m * columns + j] + ($OUT)value * ($OUT)row[j]);
        }
}
""",
    "copy": """\
/* Entries to other places, times a factor. */
static void copy_@IN@_@OUT@_@W@(const struct walk *w, int64_t factor, const $IN *restrict in,
                                $OUT *restrict out)
{
"""
    + _walked("out[o] = ($OUT)(($W)in[i] * ($W)factor);"),
    "sum": """\
/* Entries added up where the walk meets an entry of out again; out is zero before. */
static void sum_@IN@_@OUT@(const struct walk *w, const $IN *restrict in, $OUT *restrict out)
{
"""
    + _walked("out[o] = ($OUT)(out[o] + ($OUT)in[i]);"),
    "fill": """\
static void fill_@OUT@(int32_t n, int64_t value, $OUT *out)
{
    for (int32_t i = 0; i < n; i++)
        out[i] = ($OUT)value;
}
""",
    "logits": """\
static void logits_@IN@_@OUT@(int32_t n, const $IN *in, $OUT *logits)
{
    for (int32_t i = 0; i < n; i++)
        logits[i] = ($OUT)(logits[i] + ($OUT)in[i]);
}
""",
}


def neuron_text(
    reset: str | None, leaks: bool, leak_first: bool, saturates: bool, norm: bool, residual: bool
) -> str:
    """A neuron's function: one step of every membrane; only the lines that its kind needs."""
    current = (
        "rescaled_@W@(($W)in[i], &n->scale, c)" if norm else "($W)in[i]" if residual else "($W)in[i] * ratio"
    )
    joined = f"{current} + ($W)residual[c * n->residual.channel + p * n->residual.place] * ratio"
    before = leaks and not leak_first
    lines = [
        "const int32_t i = c * n->view.channel + p * n->view.place, o = c * n->view.places + p;",
        f"$W v = ($W)membrane[o]{' * unit' if saturates else ''};",
        f"const $W h = {'right_@W@(v * leak, n->leak_shift)' if before else 'v'} + "
        f"{joined if residual else current};",
        "const int8_t s = h >= threshold;",
        {"hard": "v = s ? 0 : h;", "soft": "v = s ? h - by : h;", None: "v = h;"}[reset],
    ]
    decayed = "v * leak" if leaks and leak_first else "v"
    shift = "n->leak_shift + n->shift" if leaks and leak_first else "n->shift"
    if saturates:
        lines.append(f"v = clamped_@W@(rounded_@W@({decayed}, {shift}), ($W)n->low, ($W)n->high) * step;")
    elif leaks and leak_first:
        lines.append("v = right_@W@(v * leak, n->leak_shift);")
    lines += ["membrane[o] = ($V)v;", "out[o] = s;"]
    numbers = ["threshold = ($W)n->threshold"]
    if reset == "soft":
        numbers.append("by = ($W)n->by")
    if residual or not norm:
        numbers.append("ratio = ($W)n->ratio")
    if leaks:
        numbers.append("leak = n->leak")
    if saturates:
        numbers += ["unit = ($W)1 << n->unit", "step = ($W)1 << (n->shift - n->unit)"]
    parts = {"norm": norm, "leak": leaks, "first": leak_first and leaks, "rounded": saturates}
    words = [word for word, there in parts.items() if there]
    name = "_".join(["neuron", *words, reset or "free", "@IN@", *(["@R@"] if residual else []), "@V@_@W@"])
    body = "\n".join(f"            {line}" for line in lines)
    also = ", rounding and saturation of the membrane" if saturates else ""
    second = ", const $R *restrict residual" if residual else ""
    return f"""\
/* One time step of a neuron: leak, current, spike, reset{also}. */
static void {name}(const struct neuron *n, const $IN *restrict in{second},
    $V *restrict membrane, int8_t *restrict out)
{{
    const $W {", ".join(numbers)};
    for (int32_t c = 0; c < n->view.channels; c++)
        for (int32_t p = 0; p < n->view.places; p++) {{
{body}
        }}
}}
"""


class Library:
    """The functions that one network calls."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}

    def use(self, text: str, **widths: int) -> str:
        """The name of a function for these widths; ``text``: a key of :data:`FUNCTIONS` or a text."""
        text = FUNCTIONS.get(text, text)
        for key, bits in widths.items():
            text = text.replace(f"@{key}@", str(bits)).replace(f"${key} ", f"int{bits}_t ")
            text = text.replace(f"${key})", f"int{bits}_t)")
        found = re.search(r"static void (\w+)\(", text)
        assert found is not None
        assert "$" not in text, text
        self.texts[found[1]] = text
        return found[1]

    def source(self) -> str:
        """Helpers that are called, then the functions."""
        texts, body = [], "\n".join(self.texts.values())
        # the last first: a helper calls those above it, which its text then asks for
        for name, helper in reversed(HELPERS.items()):
            for bits in ("32", "64") if "@W@" in helper else ("of",):
                if f"{name}_{bits}(" in body:
                    texts.append(helper.replace("@W@", bits).replace("$W", f"int{bits}_t"))
                    body += texts[-1]
        return "\n".join([*reversed(texts), *self.texts.values()])
