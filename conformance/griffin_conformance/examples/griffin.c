/* A Griffin in one file of C11, as an engine of the conformance suite.
 *
 *     cc -O2 -std=c11 -o griffin griffin.c -lm
 *     griffin-np conformance run --backend "cmd:./griffin --stdio"
 *
 * It speaks the protocol griffin-conformance/1: one JSON request per line on standard input, one
 * reply per line on standard output. Read it from the model outwards:
 *
 *     1  operations      the equations, for one token at a time
 *     2  model           configuration, weights, state, and one step through all blocks
 *     3  memory          what a request takes is given back after it, whatever happens
 *     4  JSON            reading it, and writing replies
 *     5  tensors         base64 and safetensors
 *     6  methods         what can be asked
 *     7  the loop        lines in, lines out
 *
 * The model reads a text token by token and keeps nothing but the state. Then most of what goes
 * wrong in batched programs cannot: cutting a text into calls, packing documents into a row,
 * padding, and decoding all run the same code. It is slow and plain on purpose. Values are float32,
 * sums are double.
 *
 * Letters: B rows, T tokens, D width, V vocabulary, R width of the recurrence, E of the MLP, H
 * heads (also blocks of the gates), G = R / H, Q key-value heads, d = D / H, W window, K width of
 * the convolution.
 */

#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PROTOCOL "griffin-conformance/1"
#define LONGEST_LINE ((size_t)1 << 28) /* bytes of a request */
#define DEEPEST 32                     /* arrays and objects inside each other */
#define MOST_BYTES ((size_t)1 << 31)   /* that a request may take, and of a reply */
#define MOST_BLOCKS 256
#define MOST_DIMS 4
#define POSITION_LIMIT ((int64_t)1 << 31)

/* An error ends the request: fail() jumps back to the loop, which replies with it. */
static void fail(const char *kind, const char *format, ...);
static void *get(size_t count, size_t size);

/* ---- 1 operations: one token -------------------------------------------------------------- */

static double sigmoid(double z)
{
    /* exp of a negative number alone: no overflow, and full accuracy in both tails. */
    double e = exp(-fabs(z));
    return (z >= 0 ? 1 : e) / (1 + e);
}

static double softplus(double z)
{
    return fmax(z, 0) + log1p(exp(-fabs(z)));
}

static double gelu(double z)
{
    const double root = 0.79788456080286535588; /* sqrt(2 / pi) */
    return 0.5 * z * (1 + tanh(root * (z + 0.044715 * z * z * z)));
}

/* sqrt(width) rounded to bfloat16, ties to even: what the training code multiplied by. */
static double embedding_scale(size_t width)
{
    int exponent;
    double mantissa = frexp(sqrt((double)width), &exponent);
    return ldexp(rint(mantissa * 256), exponent - 8);
}

/* y = x / sqrt(mean(x^2) + eps) * (1 + scale) */
static void rms_norm(float *y, const float *x, const float *scale, size_t D, double eps)
{
    double sum = 0;
    for (size_t j = 0; j < D; j++)
        sum += (double)x[j] * x[j];
    double root = sqrt(sum / (double)D + eps);
    for (size_t j = 0; j < D; j++)
        y[j] = (float)(x[j] / root * (1.0 + scale[j]));
}

/* y = x W + b: W is (K, N), row by row; b may be missing */
static void linear(float *y, const float *x, const float *W, const float *b, size_t K, size_t N)
{
    for (size_t n = 0; n < N; n++) {
        double sum = 0;
        for (size_t k = 0; k < K; k++)
            sum += (double)x[k] * W[k * N + n];
        y[n] = (float)(b ? sum + b[n] : sum);
    }
}

/* Convolution of width K at the current input x (R): its weight is the last row of w. `past` has
 * the K - 1 inputs before, oldest first; of these only `position` lie in the document. */
static void convolve(float *y, float *past, const float *x, const float *w, const float *b,
                     size_t K, size_t R, int64_t position)
{
    for (size_t c = 0; c < R; c++) {
        double sum = (double)w[(K - 1) * R + c] * x[c];
        for (size_t s = 1; s < K && (int64_t)s <= position; s++)
            sum += (double)w[(K - 1 - s) * R + c] * past[(K - 1 - s) * R + c];
        y[c] = (float)(sum + b[c]);
    }
    if (K > 1) {
        memmove(past, past + R, (K - 2) * R * sizeof *past);
        memcpy(past + (K - 2) * R, x, R * sizeof *past);
    }
}

/* Equations (1) and (2): sigmoid(W x + b); W has one (in, out) block for each of H heads. */
static void gate(float *y, const float *x, const float *w, const float *b, size_t H, size_t G)
{
    for (size_t h = 0; h < H; h++)
        for (size_t j = 0; j < G; j++) {
            double sum = b[h * G + j];
            for (size_t i = 0; i < G; i++)
                sum += (double)x[h * G + i] * w[(h * G + i) * G + j];
            y[h * G + j] = (float)sigmoid(sum);
        }
}

/* Equation (3) and the multiplier of (4). 1 - exp(2 log a) would lose all digits where a is almost
 * 1, which is where long memory lives; -expm1(2 log a) loses none. */
static void decay(double r, double a_param, double *a, double *multiplier)
{
    double log_a = -8 * r * softplus(a_param);
    *a = exp(log_a);
    *multiplier = sqrt(-expm1(2 * log_a));
}

typedef struct {
    const float *w_a, *b_a, *w_x, *b_x, *a_param;
} Gates;

/* Equations (1) to (4): the state h (R) after the input x. At position 0 there is no past: whatever
 * h holds is forgotten, even if it is not finite, and the input enters undamped. */
static void rg_lru(float *h, const float *x, const Gates *p, size_t H, size_t G, int64_t position,
                   float *r, float *i)
{
    gate(r, x, p->w_a, p->b_a, H, G);
    gate(i, x, p->w_x, p->b_x, H, G);
    for (size_t c = 0; c < H * G; c++) {
        double a, multiplier, gated = (double)i[c] * x[c];
        decay(r[c], p->a_param[c], &a, &multiplier);
        h[c] = (float)(position ? a * h[c] + multiplier * gated : gated);
    }
}

/* Rotary embedding of `heads` vectors of d channels: channel j of the first half of the rotated
 * ones turns with channel j of the second. At position 2^31 a double angle is wrong by up to 5e-7
 * rad, which is allowed; long double is better where there is one. */
static void rope(float *x, size_t heads, size_t d, size_t rotary, int64_t position, double base)
{
    size_t half = rotary / 2;
    for (size_t j = 0; j < half; j++) {
        long double angle = (long double)position * powl(base, -(long double)j / half);
        double c = (double)cosl(angle), s = (double)sinl(angle);
        for (size_t h = 0; h < heads; h++) {
            float *first = x + h * d + j, *second = first + half;
            double u = *first, v = *second;
            *first = (float)(u * c - v * s);
            *second = (float)(v * c + u * s);
        }
    }
}

/* Attention of one token over n keys: keys[j] and values[j] are those of the token j back, (Q, d).
 * Query head h shares key-value head floor(h Q / H). `scores` has room for n numbers. */
static void attend(float *y, const float *q, const float **keys, const float **values, size_t n,
                   size_t H, size_t Q, size_t d, double *scores)
{
    for (size_t h = 0; h < H; h++) {
        size_t shared = h * Q / H * d;
        double top = -INFINITY, total = 0;
        for (size_t j = 0; j < n; j++) {
            double sum = 0;
            for (size_t c = 0; c < d; c++)
                sum += (double)q[h * d + c] * keys[j][shared + c];
            scores[j] = sum / sqrt((double)d);
            top = fmax(top, scores[j]);
        }
        for (size_t j = 0; j < n; j++)
            total += scores[j] = exp(scores[j] - top);
        for (size_t c = 0; c < d; c++) {
            double sum = 0;
            for (size_t j = 0; j < n; j++)
                sum += scores[j] * values[j][shared + c];
            y[h * d + c] = (float)(sum / total);
        }
    }
}

/* Tied head and soft cap: cap tanh(z / cap), and a cap of 0 is none. */
static void head(float *z, const float *x, const float *embedding, size_t V, size_t D, double cap)
{
    for (size_t v = 0; v < V; v++) {
        double sum = 0;
        for (size_t j = 0; j < D; j++)
            sum += (double)x[j] * embedding[v * D + j];
        z[v] = (float)(cap > 0 ? cap * tanh(sum / cap) : sum);
    }
}

/* ---- 2 model ------------------------------------------------------------------------------ */

/* Only members of eight bytes and an array of a multiple of eight, so no gaps: it is hashed and
 * written to files as bytes. */
typedef struct {
    int64_t D, depth, H, V, R, E, Q, W, K, d, rotary, scaled, eos;
    double cap, base, eps;
    char kinds[MOST_BLOCKS]; /* 'r' or 'a' */
} Config;

typedef struct {
    const float *temporal_norm, *mlp_norm;
    const float *x_w, *x_b, *y_w, *y_b, *conv_w, *conv_b, *out_w, *out_b; /* recurrent */
    Gates gates;
    const float *query, *key, *value, *output_w, *output_b; /* attention */
    const float *gate_w, *gate_b, *up_w, *up_b, *down_w, *down_b;
} Block;

typedef struct Chunk Chunk; /* memory: see 3 */

typedef struct {
    Chunk *memory;
    Config c;
    uint64_t fingerprint; /* of configuration and weights: a state belongs to one of them */
    const float *embedding, *final_norm;
    Block *blocks;
} Model;

/* Each row has `row_size` numbers, block by block: the convolution's last inputs (K - 1, R) and h
 * (R), or rings of keys and values (W, Q, d), where position p stands in slot p mod W. Outside the
 * current document all of it is zero. */
typedef struct {
    Chunk *memory;
    Config c;
    uint64_t fingerprint;
    size_t batch, row_size;
    int64_t *position; /* of each row's next token */
    float *values;
} State;

static size_t ring_size(const Config *c)
{
    return (size_t)(c->W * c->Q * c->d);
}

static size_t block_size(const Config *c, int64_t i)
{
    return c->kinds[i] == 'r' ? (size_t)(c->K * c->R) : 2 * ring_size(c);
}

static size_t state_row_size(const Config *c)
{
    size_t size = 0;
    for (int64_t i = 0; i < c->depth; i++)
        size += block_size(c, i);
    return size;
}

/* Room for everything that one step computes on the way. */
typedef struct {
    float *normed, *mixed, *x, *y, *r, *i, *q, *k, *v, *gate, *up;
    const float **keys, **values;
    double *scores;
} Scratch;

static Scratch new_scratch(const Config *c)
{
    size_t D = (size_t)c->D, R = (size_t)c->R, E = (size_t)c->E, kv = (size_t)(c->Q * c->d);
    size_t keys = memchr(c->kinds, 'a', (size_t)c->depth) ? (size_t)c->W + 1 : 1;
    Scratch s;
    s.normed = get(D, sizeof(float)), s.mixed = get(D, sizeof(float));
    s.x = get(R, sizeof(float)), s.y = get(R, sizeof(float));
    s.r = get(R, sizeof(float)), s.i = get(R, sizeof(float));
    s.q = get(D, sizeof(float)), s.k = get(kv, sizeof(float)), s.v = get(kv, sizeof(float));
    s.gate = get(E, sizeof(float)), s.up = get(E, sizeof(float));
    s.keys = get(keys, sizeof(float *)), s.values = get(keys, sizeof(float *));
    s.scores = get(keys, sizeof(double));
    return s;
}

/* Recurrent block: two branches of width R, one through convolution and RG-LRU, the other through
 * GeLU; their product goes back to D. From s->normed to s->mixed. */
static void recurrent(const Config *c, const Block *p, float *state, int64_t position, Scratch *s)
{
    size_t D = (size_t)c->D, R = (size_t)c->R, K = (size_t)c->K, H = (size_t)c->H;
    float *past = state, *h = state + (K - 1) * R;
    linear(s->x, s->normed, p->x_w, p->x_b, D, R);
    convolve(s->y, past, s->x, p->conv_w, p->conv_b, K, R, position);
    rg_lru(h, s->y, &p->gates, H, R / H, position, s->r, s->i);
    linear(s->y, s->normed, p->y_w, p->y_b, D, R);
    for (size_t j = 0; j < R; j++)
        s->y[j] = (float)((double)h[j] * (float)gelu(s->y[j]));
    linear(s->mixed, s->y, p->out_w, p->out_b, R, D);
}

/* Local attention over the token and the W before it, W + 1 keys in all: the slot that the new key
 * will take still holds the one W back, so the token attends first and is written then. */
static void attention(const Config *c, const Block *p, float *state, int64_t position, Scratch *s)
{
    size_t D = (size_t)c->D, H = (size_t)c->H, Q = (size_t)c->Q, d = (size_t)c->d, kv = Q * d;
    size_t rotary = (size_t)c->rotary, W = (size_t)c->W;
    float *key_ring = state, *value_ring = state + ring_size(c);
    linear(s->q, s->normed, p->query, NULL, D, D);
    linear(s->k, s->normed, p->key, NULL, D, kv);
    linear(s->v, s->normed, p->value, NULL, D, kv);
    rope(s->q, H, d, rotary, position, c->base);
    rope(s->k, Q, d, rotary, position, c->base);
    size_t past = position < c->W ? (size_t)position : W;
    s->keys[0] = s->k, s->values[0] = s->v;
    for (size_t j = 1; j <= past; j++) {
        size_t slot = (size_t)((position - (int64_t)j) % c->W) * kv;
        s->keys[j] = key_ring + slot, s->values[j] = value_ring + slot;
    }
    attend(s->mixed, s->q, s->keys, s->values, past + 1, H, Q, d, s->scores);
    size_t slot = (size_t)(position % c->W) * kv;
    memcpy(key_ring + slot, s->k, kv * sizeof(float));
    memcpy(value_ring + slot, s->v, kv * sizeof(float));
    memcpy(s->q, s->mixed, D * sizeof(float));
    linear(s->mixed, s->q, p->output_w, p->output_b, D, D);
}

/* Residual block i: x + Temporal(RMSNorm(x)), then x + MLP(RMSNorm(x)). */
static void residual_block(const Config *c, const Block *p, int64_t i, float *x, float *state,
                           int64_t position, Scratch *s)
{
    size_t D = (size_t)c->D, E = (size_t)c->E;
    rms_norm(s->normed, x, p->temporal_norm, D, c->eps);
    (c->kinds[i] == 'r' ? recurrent : attention)(c, p, state, position, s);
    for (size_t j = 0; j < D; j++)
        x[j] += s->mixed[j];
    rms_norm(s->normed, x, p->mlp_norm, D, c->eps);
    linear(s->gate, s->normed, p->gate_w, p->gate_b, D, E);
    linear(s->up, s->normed, p->up_w, p->up_b, D, E);
    for (size_t j = 0; j < E; j++)
        s->gate[j] = (float)((double)(float)gelu(s->gate[j]) * s->up[j]);
    linear(s->mixed, s->gate, p->down_w, p->down_b, E, D);
    for (size_t j = 0; j < D; j++)
        x[j] += s->mixed[j];
}

/* Read one token. The row's state moves on; x (D) is what the head sees. The residual streams go to
 * streams[0] to streams[depth] where these are wanted. */
static void step(const Model *m, float *row, int64_t token, int64_t position, float *x,
                 float **streams, Scratch *s)
{
    const Config *c = &m->c;
    size_t D = (size_t)c->D;
    double scale = c->scaled ? embedding_scale(D) : 1;
    if (position == 0) /* a document begins: what came before is forgotten */
        memset(row, 0, state_row_size(c) * sizeof *row);
    for (size_t j = 0; j < D; j++)
        x[j] = (float)(m->embedding[(size_t)token * D + j] * scale);
    for (int64_t i = 0; i < c->depth; i++) {
        if (streams)
            memcpy(streams[i], x, D * sizeof *x);
        residual_block(c, &m->blocks[i], i, x, row, position, s);
        row += block_size(c, i);
    }
    memcpy(s->normed, x, D * sizeof *x);
    rms_norm(x, s->normed, m->final_norm, D, c->eps);
    if (streams)
        memcpy(streams[c->depth], x, D * sizeof *x);
}

/* ---- 3 memory ----------------------------------------------------------------------------- */

struct Chunk {
    Chunk *next;
    max_align_t start[];
};

/* What the request takes; and what it makes and keeps, if it comes to its end. */
static Chunk *for_request, *for_object;
static jmp_buf end_of_request;
static const char *error_kind;
static char error_message[600];

static void fail(const char *kind, const char *format, ...)
{
    va_list values;
    va_start(values, format);
    vsnprintf(error_message, sizeof error_message, format, values);
    va_end(values);
    error_kind = kind;
    longjmp(end_of_request, 1);
}

static size_t taken; /* bytes by this request */

static void *get_from(Chunk **list, size_t count, size_t size)
{
    size_t left = MOST_BYTES - taken;
    if (left < sizeof(Chunk) || (size && count > (left - sizeof(Chunk)) / size))
        fail("failed", "this would take more than %zu bytes of memory", MOST_BYTES);
    taken += sizeof(Chunk) + count * size;
    Chunk *chunk = calloc(1, sizeof(Chunk) + count * size);
    if (!chunk)
        fail("failed", "out of memory: %zu bytes", count * size);
    chunk->next = *list;
    *list = chunk;
    return chunk->start;
}

/* Zeroed memory that is given back after the request. */
static void *get(size_t count, size_t size)
{
    return get_from(&for_request, count, size);
}

/* Zeroed memory of the model or state that the request makes. */
static void *get_kept(size_t count, size_t size)
{
    return get_from(&for_object, count, size);
}

static void give_back(Chunk **list)
{
    while (*list) {
        Chunk *next = (*list)->next;
        free(*list);
        *list = next;
    }
}

/* Models and states by their handles. */
typedef struct {
    Model *model;
    State *state;
} Entry;

static Entry *entries;
static size_t entry_count;

static size_t new_handle(Entry entry)
{
    size_t handle = 0;
    while (handle < entry_count && (entries[handle].model || entries[handle].state))
        handle++;
    if (handle == entry_count) {
        size_t count = 2 * entry_count + 16;
        Entry *more = realloc(entries, count * sizeof *more);
        if (!more)
            fail("failed", "out of memory: no handle left");
        memset(more + entry_count, 0, (count - entry_count) * sizeof *more);
        entries = more, entry_count = count;
    }
    entries[handle] = entry;
    return handle;
}

static void free_entry(Entry *entry)
{
    /* The object lies in its own memory, so its list is taken out first. */
    Chunk *memory = entry->model ? entry->model->memory : NULL;
    if (entry->state)
        memory = entry->state->memory;
    entry->model = NULL, entry->state = NULL;
    give_back(&memory);
}

static State *new_state(const Config *c, uint64_t fingerprint, size_t batch)
{
    State *s = get_kept(1, sizeof *s);
    s->c = *c, s->fingerprint = fingerprint;
    s->batch = batch, s->row_size = state_row_size(c);
    if (s->row_size && batch > MOST_BYTES / sizeof(float) / s->row_size)
        fail("refused", "a state of %zu rows would take more than %zu bytes", batch, MOST_BYTES);
    s->position = get_kept(batch, sizeof *s->position);
    s->values = get_kept(batch * s->row_size, sizeof *s->values);
    return s;
}

/* ---- 4 JSON ------------------------------------------------------------------------------- */

typedef enum { NOTHING, NO, YES, NUMBER, TEXT, ARRAY, OBJECT } Kind;

typedef struct Json {
    Kind kind;
    double number;
    const char *key, *text; /* text without its escapes, which ends with a 0 */
    size_t length;          /* of the text; or how many items */
    struct Json *first, *next;
} Json;

/* Texts are read in place: the line is changed while it is read. */
static char *at;

static void no_json(const char *what)
{
    fail("failed", "no JSON: %s before \"%.20s\"", what, at);
}

static void skip_blanks(void)
{
    while (*at == ' ' || *at == '\t' || *at == '\r' || *at == '\n')
        at++;
}

static unsigned read_hex(void)
{
    unsigned value = 0;
    for (int n = 0; n < 4; n++, at++) {
        const char *digits = "0123456789abcdef0123456789ABCDEF", *found = NULL;
        if (*at)
            found = strchr(digits, *at);
        if (!found)
            no_json("four hexadecimal digits are missing");
        value = 16 * value + (unsigned)(found - digits) % 16;
    }
    return value;
}

static char *put_utf8(char *to, unsigned code)
{
    if (code < 0x80) {
        *to++ = (char)code;
    } else if (code < 0x800) {
        *to++ = (char)(0xC0 | code >> 6);
        *to++ = (char)(0x80 | (code & 0x3F));
    } else if (code < 0x10000) {
        *to++ = (char)(0xE0 | code >> 12);
        *to++ = (char)(0x80 | (code >> 6 & 0x3F));
        *to++ = (char)(0x80 | (code & 0x3F));
    } else {
        *to++ = (char)(0xF0 | code >> 18);
        *to++ = (char)(0x80 | (code >> 12 & 0x3F));
        *to++ = (char)(0x80 | (code >> 6 & 0x3F));
        *to++ = (char)(0x80 | (code & 0x3F));
    }
    return to;
}

static char *read_escape(char *to)
{
    static const char names[] = "\"\\/bfnrt", values[] = "\"\\/\b\f\n\r\t";
    const char *found = *at ? strchr(names, *at) : NULL;
    if (found) {
        *to++ = values[found - names];
        at++;
        return to;
    }
    if (*at != 'u')
        no_json("an unknown escape");
    at++;
    unsigned code = read_hex();
    if (code >= 0xD800 && code < 0xDC00 && at[0] == '\\' && at[1] == 'u') {
        at += 2;
        unsigned low = read_hex();
        if (low < 0xDC00 || low > 0xDFFF)
            no_json("half a surrogate pair");
        code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
    }
    if (code == 0)
        no_json("a text with the character 0");
    return put_utf8(to, code);
}

/* From behind the opening quote; an escape is never shorter than what it stands for. */
static char *read_text(size_t *length)
{
    char *start = at, *to = at;
    while (*at != '"') {
        if ((unsigned char)*at < 0x20)
            no_json("a text that does not end, or a control character in it");
        if (*at == '\\')
            at++, to = read_escape(to);
        else
            *to++ = *at++;
    }
    at++;
    *to = 0;
    *length = (size_t)(to - start);
    return start;
}

static void skip_digits(void)
{
    if (*at < '0' || *at > '9')
        no_json("a digit is missing");
    while (*at >= '0' && *at <= '9')
        at++;
}

static double read_number(void)
{
    char *start = at;
    if (*at == '-')
        at++;
    if (*at == '0')
        at++;
    else
        skip_digits();
    if (*at == '.')
        at++, skip_digits();
    if (*at == 'e' || *at == 'E') {
        at++;
        if (*at == '+' || *at == '-')
            at++;
        skip_digits();
    }
    double value = strtod(start, NULL);
    if (!isfinite(value))
        no_json("a number that is too large");
    return value;
}

static int read_word(const char *word)
{
    size_t length = strlen(word);
    if (strncmp(at, word, length) != 0)
        return 0;
    at += length;
    return 1;
}

static Json *read_value(int depth);

/* Items of an array or object, from behind its opening bracket. */
static void read_items(Json *into, int depth)
{
    char close = into->kind == ARRAY ? ']' : '}';
    Json **next = &into->first;
    skip_blanks();
    if (*at == close) {
        at++;
        return;
    }
    for (;;) {
        const char *key = NULL;
        size_t length;
        skip_blanks();
        if (into->kind == OBJECT) {
            if (*at++ != '"')
                at--, no_json("a key is missing");
            key = read_text(&length);
            skip_blanks();
            if (*at++ != ':')
                at--, no_json("':' is missing");
        }
        *next = read_value(depth + 1);
        (*next)->key = key;
        next = &(*next)->next;
        into->length++;
        skip_blanks();
        if (*at == close) {
            at++;
            return;
        }
        if (*at++ != ',')
            at--, no_json("',' is missing");
    }
}

static Json *read_value(int depth)
{
    Json *json = get(1, sizeof *json);
    if (depth > DEEPEST)
        fail("failed", "more than %d arrays and objects inside each other", DEEPEST);
    skip_blanks();
    if (*at == '"') {
        at++;
        json->kind = TEXT;
        json->text = read_text(&json->length);
    } else if (*at == '[' || *at == '{') {
        json->kind = *at++ == '[' ? ARRAY : OBJECT;
        read_items(json, depth);
    } else if (*at == '-' || (*at >= '0' && *at <= '9')) {
        json->kind = NUMBER;
        json->number = read_number();
    } else if (read_word("true")) {
        json->kind = YES;
    } else if (read_word("false")) {
        json->kind = NO;
    } else if (!read_word("null")) {
        no_json("no value");
    }
    return json;
}

/* A whole text of `length` bytes, which ends with a 0. */
static Json *read_json(char *text, size_t length)
{
    at = text;
    Json *json = read_value(0);
    skip_blanks();
    if (at != text + length)
        no_json("something is left");
    return json;
}

/* A member of an object, or NULL. */
static const Json *find(const Json *object, const char *key)
{
    if (object && object->kind == OBJECT)
        for (const Json *item = object->first; item; item = item->next)
            if (strcmp(item->key, key) == 0)
                return item;
    return NULL;
}

static const Json *member(const Json *object, const char *key, Kind kind)
{
    static const char *names[] = {"null", "false", "true", "a number", "text", "an array",
                                  "an object"};
    const Json *found = find(object, key);
    if (!found)
        fail("failed", "'%s' is missing", key);
    if (found->kind != kind)
        fail("failed", "'%s' is not %s", key, names[kind]);
    return found;
}

static int is_null(const Json *object, const char *key)
{
    const Json *found = find(object, key);
    return !found || found->kind == NOTHING;
}

static int64_t whole(const Json *json, const char *name, int64_t low, int64_t high)
{
    double x = json->number;
    if (json->kind != NUMBER || x != floor(x) || x < (double)low || x > (double)high)
        fail("failed", "'%s' must be an integer from %lld to %lld", name, (long long)low,
             (long long)high);
    return (int64_t)x;
}

static int64_t integer(const Json *object, const char *key, int64_t low, int64_t high)
{
    return whole(member(object, key, NUMBER), key, low, high);
}

static double number(const Json *object, const char *key, double low)
{
    double x = member(object, key, NUMBER)->number;
    if (x < low)
        fail("failed", "'%s' is %g, expected at least %g", key, x, low);
    return x;
}

static const char *text(const Json *object, const char *key)
{
    return member(object, key, TEXT)->text;
}

static int truth(const Json *object, const char *key)
{
    const Json *found = find(object, key);
    if (!found || (found->kind != YES && found->kind != NO))
        fail("failed", "'%s' must be true or false", key);
    return found->kind == YES;
}

/* The reply as far as it is written. */
static char *out;
static size_t out_length, out_room;

static char *out_space(size_t length)
{
    if (length > MOST_BYTES - out_length)
        fail("failed", "the reply would have more than %zu bytes", MOST_BYTES);
    if (out_length + length > out_room) {
        size_t room = 2 * (out_length + length);
        char *more = realloc(out, room);
        if (!more)
            fail("failed", "out of memory for the reply");
        out = more, out_room = room;
    }
    char *space = out + out_length;
    out_length += length;
    return space;
}

static void put(const char *format, ...)
{
    char part[256];
    va_list values;
    va_start(values, format);
    int length = vsnprintf(part, sizeof part, format, values);
    va_end(values);
    memcpy(out_space((size_t)length), part, (size_t)length);
}

static void put_text(const char *from)
{
    put("\"");
    for (; *from; from++)
        if (*from == '"' || *from == '\\')
            put("\\%c", *from);
        else
            put("%c", (unsigned char)*from < 0x20 || (unsigned char)*from > 0x7E ? '?' : *from);
    put("\"");
}

/* ---- 5 tensors ---------------------------------------------------------------------------- */

static const char base64[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/* Bytes are little-endian in messages and files, and here: main() makes sure of it. */
typedef struct {
    const char *name, *dtype;
    int dims;
    size_t shape[MOST_DIMS], count;
    const unsigned char *bytes;
} Tensor;

/* A member of an object, or an item of an array where it has no name. */
static void put_tensor(const char *name, const char *dtype, const void *data, size_t item, int dims,
                       const size_t *shape)
{
    const unsigned char *from = data;
    size_t left = item;
    if (name)
        put("\"%s\":", name);
    put("{\"dtype\":\"%s\",\"shape\":[", dtype);
    for (int i = 0; i < dims; i++) {
        put(i ? ",%zu" : "%zu", shape[i]);
        left *= shape[i];
    }
    put("],\"data\":\"");
    char *to = out_space((left + 2) / 3 * 4);
    for (; left >= 3; left -= 3, from += 3) {
        uint32_t bits = (uint32_t)from[0] << 16 | (uint32_t)from[1] << 8 | from[2];
        for (int i = 0; i < 4; i++)
            *to++ = base64[bits >> (18 - 6 * i) & 63];
    }
    if (left) {
        uint32_t bits = (uint32_t)from[0] << 16 | (left == 2 ? (uint32_t)from[1] << 8 : 0);
        *to++ = base64[bits >> 18], *to++ = base64[bits >> 12 & 63];
        *to++ = left == 2 ? base64[bits >> 6 & 63] : '=', *to++ = '=';
    }
    put("\"}");
}

static void put_floats(const char *name, const float *data, int dims, const size_t *shape)
{
    put_tensor(name, "float32", data, sizeof *data, dims, shape);
}

static unsigned char *from_base64(const char *name, const char *from, size_t length, size_t *count)
{
    static unsigned char value[256];
    if (!value['B'])
        for (int i = 0; i < 64; i++)
            value[(unsigned char)base64[i]] = (unsigned char)i;
    if (length % 4)
        fail("failed", "'%s' is no base64: %zu characters", name, length);
    size_t padding = 0;
    while (padding < 2 && padding < length && from[length - 1 - padding] == '=')
        padding++;
    unsigned char *bytes = get(length / 4 * 3, 1), *to = bytes;
    for (size_t n = 0; n < length; n += 4) {
        uint32_t bits = 0;
        for (size_t i = n; i < n + 4; i++) {
            unsigned char c = (unsigned char)from[i];
            if (!value[c] && c != 'A' && i < length - padding)
                fail("failed", "'%s' is no base64: character %zu", name, i);
            bits = bits << 6 | (i < length - padding ? (uint32_t)value[c] : 0u);
        }
        *to++ = (unsigned char)(bits >> 16);
        *to++ = (unsigned char)(bits >> 8);
        *to++ = (unsigned char)bits;
    }
    *count = length / 4 * 3 - padding;
    return bytes;
}

static size_t item_size(const Tensor *t)
{
    if (!strcmp(t->dtype, "float64") || !strcmp(t->dtype, "F64") || !strcmp(t->dtype, "int64") ||
        !strcmp(t->dtype, "I64"))
        return 8;
    if (!strcmp(t->dtype, "float32") || !strcmp(t->dtype, "F32") || !strcmp(t->dtype, "int32") ||
        !strcmp(t->dtype, "I32"))
        return 4;
    fail("failed", "'%s' has the dtype %.20s; this engine reads float32, float64, int32, int64",
         t->name, t->dtype);
    return 0;
}

/* Read a shape, and hold it against the bytes that there are. */
static void read_shape(Tensor *t, const Json *shape, size_t bytes)
{
    t->count = 1;
    for (const Json *n = shape->first; n; n = n->next) {
        if (t->dims == MOST_DIMS)
            fail("failed", "'%s' has more than %d axes", t->name, MOST_DIMS);
        size_t size = (size_t)whole(n, "shape", 0, INT32_MAX);
        if (size && t->count > MOST_BYTES / size)
            fail("failed", "'%s' is too large", t->name);
        t->shape[t->dims++] = size;
        t->count *= size;
    }
    if (t->count * item_size(t) != bytes)
        fail("failed", "'%s' has %zu bytes, expected %zu for its shape", t->name, bytes,
             t->count * item_size(t));
}

typedef struct {
    const char *path;
    const Json *header;
    const unsigned char *data;
    size_t size; /* of the data */
} File;

static size_t file_size(const char *path)
{
    FILE *stream = fopen(path, "rb");
    if (!stream)
        fail("failed", "cannot open %.300s: %s", path, strerror(errno));
    long size = fseek(stream, 0, SEEK_END) ? -1 : ftell(stream);
    fclose(stream);
    if (size < 0 || (size_t)size > MOST_BYTES / 2)
        fail("failed", "cannot read %.300s: it has %ld bytes", path, size);
    return (size_t)size;
}

/* A safetensors file: the length of its header in eight bytes, the header as JSON with dtype, shape
 * and place of each tensor, and then the data. */
static File read_file(const char *path)
{
    size_t size = file_size(path);
    uint64_t length;
    unsigned char *bytes = get(size, 1);
    FILE *stream = fopen(path, "rb");
    size_t found = stream ? fread(bytes, 1, size, stream) : 0;
    if (stream)
        fclose(stream);
    if (found != size || size < sizeof length)
        fail("failed", "%.300s is no safetensors file, or cannot be read", path);
    memcpy(&length, bytes, sizeof length);
    if (length > size - sizeof length)
        fail("failed", "%.300s is no safetensors file: its header is longer than it", path);
    char *header = get((size_t)length + 1, 1); /* with a 0 at its end */
    memcpy(header, bytes + sizeof length, (size_t)length);
    return (File){path, read_json(header, (size_t)length), bytes + sizeof length + length,
                  size - sizeof length - (size_t)length};
}

static Tensor tensor_in(const File *file, const char *name)
{
    const Json *entry = find(file->header, name);
    if (!entry)
        fail("failed", "%.300s has no tensor '%.60s'", file->path, name);
    Tensor t = {.name = name, .dtype = text(entry, "dtype")};
    const Json *place = member(entry, "data_offsets", ARRAY);
    if (place->length != 2)
        fail("failed", "'%.60s' has no two data_offsets", name);
    size_t begin = (size_t)whole(place->first, "data_offsets", 0, (int64_t)file->size);
    size_t end = (size_t)whole(place->first->next, "data_offsets", (int64_t)begin,
                               (int64_t)file->size);
    t.bytes = file->data + begin;
    read_shape(&t, member(entry, "shape", ARRAY), end - begin);
    return t;
}

/* A tensor among the parameters of a request, with so many axes. */
static Tensor tensor(const Json *params, const char *name, int dims)
{
    const Json *json = member(params, name, OBJECT);
    Tensor t = {.name = name};
    if (find(json, "path")) {
        File file = read_file(text(json, "path"));
        t = tensor_in(&file, text(json, "name"));
        t.name = name;
    } else {
        const Json *data = member(json, "data", TEXT);
        size_t count;
        t.dtype = text(json, "dtype");
        t.bytes = from_base64(name, data->text, data->length, &count);
        read_shape(&t, member(json, "shape", ARRAY), count);
    }
    if (t.dims != dims)
        fail("failed", "'%s' has %d axes, expected %d", name, t.dims, dims);
    return t;
}

static void need_size(const Tensor *t, int axis, size_t size)
{
    if (t->shape[axis] != size)
        fail("failed", "'%s' has size %zu along axis %d, expected %zu", t->name, t->shape[axis],
             axis, size);
}

/* The values of a tensor as float32. */
static float *floats(const Tensor *t)
{
    float *x = get(t->count, sizeof *x);
    if (strchr("fF", t->dtype[0]) == NULL)
        fail("failed", "'%s' has the dtype %.20s, expected floats", t->name, t->dtype);
    if (item_size(t) == sizeof *x) {
        memcpy(x, t->bytes, t->count * sizeof *x);
        return x;
    }
    for (size_t n = 0; n < t->count; n++) {
        double wide;
        memcpy(&wide, t->bytes + 8 * n, sizeof wide);
        x[n] = (float)wide;
    }
    return x;
}

static int64_t *integers(const Tensor *t)
{
    int64_t *x = get(t->count, sizeof *x);
    if (strchr("iI", t->dtype[0]) == NULL)
        fail("failed", "'%s' has the dtype %.20s, expected integers", t->name, t->dtype);
    for (size_t n = 0; n < t->count; n++) {
        int32_t narrow;
        if (item_size(t) == sizeof *x) {
            memcpy(x + n, t->bytes + 8 * n, sizeof *x);
        } else {
            memcpy(&narrow, t->bytes + 4 * n, sizeof narrow);
            x[n] = narrow;
        }
    }
    return x;
}

/* Positions (T,) of one row without padding. */
static int64_t *row_positions(const Json *params, size_t T)
{
    Tensor t = tensor(params, "positions", 1);
    need_size(&t, 0, T);
    int64_t *positions = integers(&t);
    for (size_t n = 0; n < T; n++)
        if (positions[n] < 0 || positions[n] >= POSITION_LIMIT)
            fail("refused", "position %lld in column %zu is not in [0, 2^31)",
                 (long long)positions[n], n);
    return positions;
}

/* ---- 6 methods: operations ---------------------------------------------------------------- */

static void do_embed(const Json *params)
{
    Tensor rows = tensor(params, "rows", 2);
    float *x = floats(&rows);
    for (size_t n = 0; n < rows.count; n++)
        x[n] = (float)(x[n] * embedding_scale(rows.shape[1]));
    put_floats("y", x, 2, rows.shape);
}

static void do_rms_norm(const Json *params)
{
    Tensor x = tensor(params, "x", 2), scale = tensor(params, "scale", 1);
    size_t D = x.shape[1];
    need_size(&scale, 0, D);
    float *from = floats(&x), *s = floats(&scale), *y = get(x.count, sizeof *y);
    for (size_t t = 0; t < x.shape[0]; t++)
        rms_norm(y + t * D, from + t * D, s, D, number(params, "eps", 0));
    put_floats("y", y, 2, x.shape);
}

static void do_linear(const Json *params)
{
    Tensor x = tensor(params, "x", 2), w = tensor(params, "weight", 2);
    size_t T = x.shape[0], K = x.shape[1], N = w.shape[1];
    float *b = NULL;
    need_size(&w, 0, K);
    if (!is_null(params, "bias")) {
        Tensor bias = tensor(params, "bias", 1);
        need_size(&bias, 0, N);
        b = floats(&bias);
    }
    float *from = floats(&x), *weight = floats(&w), *y = get(T * N, sizeof *y);
    for (size_t t = 0; t < T; t++)
        linear(y + t * N, from + t * K, weight, b, K, N);
    put_floats("y", y, 2, (size_t[]){T, N});
}

static void do_gelu(const Json *params)
{
    Tensor x = tensor(params, "x", 2);
    float *y = floats(&x);
    for (size_t n = 0; n < x.count; n++)
        y[n] = (float)gelu(y[n]);
    put_floats("y", y, 2, x.shape);
}

static void do_causal_conv(const Json *params)
{
    Tensor x = tensor(params, "x", 2), w = tensor(params, "weight", 2);
    Tensor b = tensor(params, "bias", 1), past = tensor(params, "past", 2);
    size_t T = x.shape[0], R = x.shape[1], K = w.shape[0];
    if (K < 1)
        fail("refused", "a convolution has a width of at least 1");
    need_size(&w, 1, R), need_size(&b, 0, R), need_size(&past, 0, K - 1), need_size(&past, 1, R);
    int64_t *positions = row_positions(params, T);
    float *from = floats(&x), *weight = floats(&w), *bias = floats(&b), *inputs = floats(&past);
    float *y = get(x.count, sizeof *y);
    for (size_t t = 0; t < T; t++) {
        if (positions[t] == 0)
            memset(inputs, 0, past.count * sizeof *inputs);
        convolve(y + t * R, inputs, from + t * R, weight, bias, K, R, positions[t]);
    }
    put_floats("y", y, 2, x.shape);
    put(",");
    put_floats("past", inputs, 2, past.shape);
}

static void do_gate(const Json *params)
{
    Tensor x = tensor(params, "x", 2), w = tensor(params, "w", 3), b = tensor(params, "b", 2);
    size_t H = b.shape[0], G = b.shape[1];
    need_size(&x, 1, H * G);
    need_size(&w, 0, H), need_size(&w, 1, G), need_size(&w, 2, G);
    float *from = floats(&x), *weight = floats(&w), *bias = floats(&b);
    float *y = get(x.count, sizeof *y);
    for (size_t t = 0; t < x.shape[0]; t++)
        gate(y + t * H * G, from + t * H * G, weight, bias, H, G);
    put_floats("y", y, 2, x.shape);
}

static void do_decay(const Json *params)
{
    Tensor r = tensor(params, "r", 2), a_param = tensor(params, "a_param", 1);
    size_t R = r.shape[1];
    need_size(&a_param, 0, R);
    float *gates = floats(&r), *p = floats(&a_param);
    float *a = get(r.count, sizeof *a), *scale = get(r.count, sizeof *scale);
    for (size_t n = 0; n < r.count; n++) {
        double decayed, multiplier;
        decay(gates[n], p[n % R], &decayed, &multiplier);
        a[n] = (float)decayed, scale[n] = (float)multiplier;
    }
    put_floats("a", a, 2, r.shape);
    put(",");
    put_floats("scale", scale, 2, r.shape);
}

static void do_scan(const Json *params)
{
    Tensor a = tensor(params, "a", 2), x = tensor(params, "x", 2), h = tensor(params, "h", 1);
    size_t T = a.shape[0], R = a.shape[1];
    need_size(&x, 0, T), need_size(&x, 1, R), need_size(&h, 0, R);
    float *decays = floats(&a), *inputs = floats(&x), *state = floats(&h);
    for (size_t t = 0; t < T; t++)
        for (size_t c = 0; c < R; c++) {
            size_t n = t * R + c;
            state[c] = (float)((double)decays[n] * state[c] + inputs[n]);
            inputs[n] = state[c];
        }
    put_floats("y", inputs, 2, x.shape);
}

static void do_rg_lru(const Json *params)
{
    Tensor x = tensor(params, "x", 2), state = tensor(params, "h", 1);
    Tensor w_a = tensor(params, "w_a", 3), b_a = tensor(params, "b_a", 2);
    Tensor w_x = tensor(params, "w_x", 3), b_x = tensor(params, "b_x", 2);
    Tensor a_param = tensor(params, "a_param", 1);
    size_t T = x.shape[0], H = b_a.shape[0], G = b_a.shape[1], R = H * G;
    need_size(&x, 1, R), need_size(&state, 0, R), need_size(&a_param, 0, R);
    need_size(&b_x, 0, H), need_size(&b_x, 1, G);
    for (int axis = 0; axis < 3; axis++) {
        need_size(&w_a, axis, axis ? G : H);
        need_size(&w_x, axis, axis ? G : H);
    }
    int64_t *positions = row_positions(params, T);
    Gates p = {floats(&w_a), floats(&b_a), floats(&w_x), floats(&b_x), floats(&a_param)};
    float *from = floats(&x), *h = floats(&state), *y = get(x.count, sizeof *y);
    float *r = get(R, sizeof *r), *i = get(R, sizeof *i);
    for (size_t t = 0; t < T; t++) {
        rg_lru(h, from + t * R, &p, H, G, positions[t], r, i);
        memcpy(y + t * R, h, R * sizeof *y);
    }
    put_floats("y", y, 2, x.shape);
}

static void do_rope(const Json *params)
{
    Tensor x = tensor(params, "x", 3);
    size_t T = x.shape[0], H = x.shape[1], d = x.shape[2];
    size_t rotary = (size_t)integer(params, "rotary_dim", 0, (int64_t)d);
    int64_t *positions = row_positions(params, T);
    float *y = floats(&x);
    for (size_t t = 0; t < T; t++)
        rope(y + t * H * d, H, d, rotary, positions[t], number(params, "base", 1));
    put_floats("y", y, 3, x.shape);
}

static void do_attention(const Json *params)
{
    Tensor q = tensor(params, "q", 3), k = tensor(params, "k", 3), v = tensor(params, "v", 3);
    size_t T = q.shape[0], H = q.shape[1], d = q.shape[2], Q = k.shape[1], kv = Q * d;
    for (int axis = 0; axis < 3; axis++)
        need_size(&v, axis, k.shape[axis]);
    need_size(&k, 0, T), need_size(&k, 2, d);
    if (!Q || H % Q)
        fail("refused", "%zu heads cannot share %zu key-value heads", H, Q);
    int64_t *positions = row_positions(params, T), W = integer(params, "window", 1, INT32_MAX);
    float *queries = floats(&q), *ks = floats(&k), *vs = floats(&v), *y = get(q.count, sizeof *y);
    const float **keys = get(T, sizeof *keys), **values = get(T, sizeof *values);
    double *scores = get(T, sizeof *scores);
    for (size_t t = 0; t < T; t++) {
        size_t n = 0;
        for (; n <= t && (int64_t)n <= W && (int64_t)n <= positions[t]; n++)
            keys[n] = ks + (t - n) * kv, values[n] = vs + (t - n) * kv;
        attend(y + t * H * d, queries + t * H * d, keys, values, n, H, Q, d, scores);
    }
    put_floats("y", y, 3, q.shape);
}

static void do_logits(const Json *params)
{
    Tensor x = tensor(params, "x", 2), embedding = tensor(params, "embedding", 2);
    size_t T = x.shape[0], D = x.shape[1], V = embedding.shape[0];
    need_size(&embedding, 1, D);
    float *from = floats(&x), *rows = floats(&embedding), *z = get(T * V, sizeof *z);
    for (size_t t = 0; t < T; t++)
        head(z + t * V, from + t * D, rows, V, D, number(params, "cap", 0));
    put_floats("y", z, 2, (size_t[]){T, V});
}

/* ---- 6 methods: models -------------------------------------------------------------------- */

static Config read_config(const Json *json)
{
    Config c = {0};
    const int64_t most = 1 << 24;
    c.D = integer(json, "width", 1, most), c.depth = integer(json, "depth", 1, MOST_BLOCKS);
    c.H = integer(json, "num_heads", 1, most), c.V = integer(json, "vocab_size", 1, most);
    c.R = integer(json, "lru_width", 1, most), c.E = integer(json, "mlp_width", 1, most);
    c.Q = integer(json, "num_kv_heads", 1, most), c.W = integer(json, "window", 1, most);
    c.K = integer(json, "conv_width", 1, 1 << 10), c.eos = integer(json, "eos_id", 0, most);
    c.cap = number(json, "logits_soft_cap", 0), c.base = number(json, "rope_base", 1);
    c.eps = number(json, "norm_eps", 0), c.scaled = truth(json, "scale_embeddings");
    double fraction = number(json, "rope_fraction", 0);
    const Json *pattern = member(json, "block_pattern", ARRAY), *kind = pattern->first;
    if (!kind)
        fail("refused", "'block_pattern' is empty");
    for (int64_t i = 0; i < c.depth; i++) { /* the pattern is repeated, and cut off at depth */
        const char *word = kind->kind == TEXT ? kind->text : "";
        if (strcmp(word, "recurrent") && strcmp(word, "attention"))
            fail("refused", "blocks are 'recurrent' or 'attention'");
        c.kinds[i] = word[0];
        kind = kind->next ? kind->next : pattern->first;
    }
    int recurrent_blocks = memchr(c.kinds, 'r', (size_t)c.depth) != NULL;
    int attention_blocks = memchr(c.kinds, 'a', (size_t)c.depth) != NULL;
    c.d = c.D / c.H, c.rotary = (int64_t)((double)c.d * fmin(fraction, 1));
    if (recurrent_blocks && c.R % c.H)
        fail("refused", "lru_width %lld is no multiple of num_heads", (long long)c.R);
    if (attention_blocks && (c.D % c.H || c.H % c.Q || c.rotary % 2))
        fail("refused", "width, num_heads, num_kv_heads and rope_fraction do not go together");
    if (attention_blocks && (double)c.W * (double)c.Q * (double)c.d * 8 > (double)MOST_BYTES)
        fail("refused", "a ring of %lld keys takes too much memory", (long long)c.W);
    return c;
}

static void hash(uint64_t *so_far, const void *data, size_t size)
{
    for (size_t n = 0; n < size; n++) /* FNV-1a */
        *so_far = (*so_far ^ ((const unsigned char *)data)[n]) * 1099511628211u;
}

/* A parameter of a model, kept with it; sizes end with 0. Block -1 is none. */
static const float *parameter(Model *m, const File *file, int64_t block, const char *name,
                              const int64_t *sizes)
{
    char *full = get(100, 1);
    if (block < 0)
        snprintf(full, 100, "%s", name);
    else
        snprintf(full, 100, "blocks.%lld.%s", (long long)block, name);
    Tensor t = tensor_in(file, full);
    int dims = 0;
    for (; sizes[dims]; dims++) {
        if (dims >= t.dims)
            fail("refused", "'%s' has %d axes, expected more", full, t.dims);
        if ((int64_t)t.shape[dims] != sizes[dims])
            fail("refused", "'%s' has size %zu along axis %d, expected %lld", full, t.shape[dims],
                 dims, (long long)sizes[dims]);
    }
    if (dims != t.dims)
        fail("refused", "'%s' has %d axes, expected %d", full, t.dims, dims);
    float *kept = get_kept(t.count, sizeof *kept);
    memcpy(kept, floats(&t), t.count * sizeof *kept);
    hash(&m->fingerprint, kept, t.count * sizeof *kept);
    return kept;
}

#define SIZES(...) (const int64_t[]){__VA_ARGS__, 0}
#define P(name, ...) parameter(m, file, i, name, SIZES(__VA_ARGS__))

static void read_block(Model *m, const File *file, int64_t i)
{
    const Config *c = &m->c;
    int64_t D = c->D, R = c->R, E = c->E, H = c->H, G = R / H, K = c->K, kv = c->Q * c->d;
    Block *p = &m->blocks[i];
    p->temporal_norm = P("temporal_norm", D), p->mlp_norm = P("mlp_norm", D);
    if (c->kinds[i] == 'r') {
        p->y_w = P("recurrent.linear_y.weight", D, R), p->y_b = P("recurrent.linear_y.bias", R);
        p->x_w = P("recurrent.linear_x.weight", D, R), p->x_b = P("recurrent.linear_x.bias", R);
        p->conv_w = P("recurrent.conv.weight", K, R), p->conv_b = P("recurrent.conv.bias", R);
        p->gates.w_a = P("recurrent.rg_lru.w_a", H, G, G);
        p->gates.b_a = P("recurrent.rg_lru.b_a", H, G);
        p->gates.w_x = P("recurrent.rg_lru.w_x", H, G, G);
        p->gates.b_x = P("recurrent.rg_lru.b_x", H, G);
        p->gates.a_param = P("recurrent.rg_lru.a_param", R);
        p->out_w = P("recurrent.linear_out.weight", R, D);
        p->out_b = P("recurrent.linear_out.bias", D);
    } else {
        p->query = P("attention.query.weight", D, D);
        p->key = P("attention.key.weight", D, kv);
        p->value = P("attention.value.weight", D, kv);
        p->output_w = P("attention.output.weight", D, D);
        p->output_b = P("attention.output.bias", D);
    }
    p->gate_w = P("mlp.gate.weight", D, E), p->gate_b = P("mlp.gate.bias", E);
    p->up_w = P("mlp.up.weight", D, E), p->up_b = P("mlp.up.bias", E);
    p->down_w = P("mlp.down.weight", E, D), p->down_b = P("mlp.down.bias", D);
}

static void do_model(const Json *params)
{
    Config c = read_config(member(params, "config", OBJECT));
    File found = read_file(text(params, "weights")), *file = &found;
    Model *m = get_kept(1, sizeof *m);
    m->c = c;
    m->fingerprint = 14695981039346656037u;
    hash(&m->fingerprint, &c, sizeof c);
    m->blocks = get_kept((size_t)c.depth, sizeof *m->blocks);
    for (int64_t i = 0; i < c.depth; i++)
        read_block(m, file, i);
    int64_t i = -1;
    m->embedding = P("embedding", c.V, c.D), m->final_norm = P("final_norm", c.D);
    size_t handle = new_handle((Entry){m, NULL});
    m->memory = for_object, for_object = NULL;
    put("\"model\":%zu", handle);
}

static Model *model_with(const Json *json)
{
    int64_t handle = whole(json, "model", 0, INT32_MAX);
    if ((size_t)handle >= entry_count || !entries[handle].model)
        fail("failed", "there is no model %lld, or it has been freed", (long long)handle);
    return entries[handle].model;
}

static Model *model_of(const Json *params)
{
    return model_with(member(params, "model", NUMBER));
}

static State *state_with(const Json *json)
{
    int64_t handle = whole(json, "state", 0, INT32_MAX);
    if ((size_t)handle >= entry_count || !entries[handle].state)
        fail("failed", "there is no state %lld, or it has been freed", (long long)handle);
    return entries[handle].state;
}

static void put_state(State *s)
{
    size_t handle = new_handle((Entry){NULL, s});
    s->memory = for_object, for_object = NULL;
    put("\"state\":%zu", handle);
}

/* A new state with rows of another one: rows[n] of it becomes row n. */
static State *selected(const State *from, const size_t *rows, size_t count)
{
    State *s = new_state(&from->c, from->fingerprint, count);
    for (size_t n = 0; n < count; n++) {
        s->position[n] = from->position[rows[n]];
        memcpy(s->values + n * s->row_size, from->values + rows[n] * s->row_size,
               s->row_size * sizeof *s->values);
    }
    return s;
}

static State *copy_of(const State *from)
{
    size_t *rows = get(from->batch, sizeof *rows);
    for (size_t n = 0; n < from->batch; n++)
        rows[n] = n;
    return selected(from, rows, from->batch);
}

/* Refuse positions that no text can have: each row goes on where it is, or starts a document. */
static void check_positions(const int64_t *positions, const State *s, size_t T)
{
    for (size_t b = 0; b < s->batch; b++) {
        int64_t next = s->position[b];
        for (size_t t = 0; t < T; t++) {
            int64_t p = positions[b * T + t];
            if (p == -1)
                continue;
            if (p != 0 && p != next)
                fail("refused",
                     "position %lld in row %zu, column %zu: expected %lld to continue, 0 to start "
                     "a document, or -1 for padding",
                     (long long)p, b, t, (long long)next);
            if (p >= POSITION_LIMIT)
                fail("refused", "position %lld in row %zu, column %zu: must be below 2^31",
                     (long long)p, b, t);
            next = p + 1;
        }
    }
}

static void check_tokens(const int64_t *tokens, const int64_t *positions, const Model *m, size_t B,
                         size_t T)
{
    for (size_t n = 0; n < B * T; n++)
        if (positions[n] >= 0 && (tokens[n] < 0 || tokens[n] >= m->c.V))
            fail("refused", "token %lld in row %zu, column %zu is outside the vocabulary [0, %lld)",
                 (long long)tokens[n], n / T, n % T, (long long)m->c.V);
}

static void do_forward(const Json *params)
{
    const Model *m = model_of(params);
    Tensor t = tensor(params, "tokens", 2);
    size_t B = t.shape[0], T = t.shape[1], D = (size_t)m->c.D, V = (size_t)m->c.V;
    const char *wanted = text(params, "logits");
    int all = !strcmp(wanted, "all"), last = !strcmp(wanted, "last");
    if (!all && !last && strcmp(wanted, "none"))
        fail("refused", "logits must be 'all', 'last' or 'none'");

    /* The state that is given stays as it is: the rows move on in a copy. */
    State *s;
    if (is_null(params, "state")) {
        s = new_state(&m->c, m->fingerprint, B);
    } else {
        const State *before = state_with(find(params, "state"));
        if (before->fingerprint != m->fingerprint)
            fail("refused", "the state belongs to a model with another configuration or weights");
        if (before->batch != B)
            fail("refused", "the state has %zu row(s), the tokens %zu", before->batch, B);
        s = copy_of(before);
    }
    int64_t *tokens = integers(&t), *positions;
    if (is_null(params, "positions")) {
        positions = get(B * T, sizeof *positions);
        for (size_t n = 0; n < B * T; n++)
            positions[n] = s->position[n / T] + (int64_t)(n % T);
    } else {
        Tensor p = tensor(params, "positions", 2);
        need_size(&p, 0, B), need_size(&p, 1, T);
        positions = integers(&p);
    }
    check_positions(positions, s, T);
    check_tokens(tokens, positions, m, B, T);

    /* Logits of padding are 0, and "last" are those of the last token that is none. */
    float *logits = get(all ? B * T : last ? B : 0, V * sizeof *logits);
    float *x = get(D, sizeof *x);
    Scratch scratch = new_scratch(&m->c);
    for (size_t b = 0; b < B; b++) {
        int seen = 0;
        for (size_t n = b * T; n < (b + 1) * T; n++) {
            if (positions[n] < 0)
                continue;
            step(m, s->values + b * s->row_size, tokens[n], positions[n], x, NULL, &scratch);
            s->position[b] = positions[n] + 1;
            seen = 1;
            if (all)
                head(logits + n * V, x, m->embedding, V, D, m->c.cap);
        }
        if (last && seen)
            head(logits + b * V, x, m->embedding, V, D, m->c.cap);
    }
    if (all)
        put_floats("logits", logits, 3, (size_t[]){B, T, V});
    else if (last)
        put_floats("logits", logits, 2, (size_t[]){B, V});
    else
        put("\"logits\":null");
    put(",");
    put_state(s);
}

static void do_hidden_states(const Json *params)
{
    const Model *m = model_of(params);
    Tensor t = tensor(params, "tokens", 2);
    size_t B = t.shape[0], T = t.shape[1], D = (size_t)m->c.D, depth = (size_t)m->c.depth;
    int64_t *tokens = integers(&t), *positions = get(t.count, sizeof *positions);
    for (size_t n = 0; n < t.count; n++)
        positions[n] = (int64_t)(n % T);
    check_tokens(tokens, positions, m, B, T);
    float *row = get(state_row_size(&m->c), sizeof *row), *x = get(D, sizeof *x);
    float **streams = get(depth + 1, sizeof *streams), **here = get(depth + 1, sizeof *here);
    for (size_t i = 0; i <= depth; i++)
        streams[i] = get(t.count, D * sizeof **streams);
    Scratch scratch = new_scratch(&m->c);
    for (size_t n = 0; n < t.count; n++) {
        for (size_t i = 0; i <= depth; i++)
            here[i] = streams[i] + n * D;
        step(m, row, tokens[n], positions[n], x, here, &scratch);
    }
    put("\"streams\":[");
    for (size_t i = 0; i <= depth; i++) {
        put(i ? "," : "");
        put_floats(NULL, streams[i], 3, (size_t[]){B, T, D});
    }
    put("]");
}

static void do_block(const Json *params)
{
    const Model *m = model_of(params);
    Tensor x = tensor(params, "x", 2);
    size_t T = x.shape[0], D = (size_t)m->c.D;
    int64_t i = integer(params, "index", 0, m->c.depth - 1);
    need_size(&x, 1, D);
    int64_t *positions = row_positions(params, T);
    float *y = floats(&x), *state = get(block_size(&m->c, i), sizeof *state);
    Scratch scratch = new_scratch(&m->c);
    for (size_t t = 0; t < T; t++)
        residual_block(&m->c, &m->blocks[i], i, y + t * D, state, positions[t], &scratch);
    put_floats("y", y, 2, x.shape);
}

/* Numbers in [0, 1), always the same from the same start (splitmix64). */
static double draw(uint64_t *from)
{
    uint64_t z = *from += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return (double)((z ^ z >> 31) >> 11) * 0x1p-53;
}

static int64_t next_token(const float *logits, int64_t V, double temperature, uint64_t *random)
{
    int64_t best = 0;
    for (int64_t v = 0; v < V; v++) {
        if (isnan(logits[v]))
            fail("failed", "the logits are not numbers");
        if (logits[v] > logits[best])
            best = v;
    }
    if (temperature == 0)
        return best;
    double total = 0, sum = 0, goal;
    for (int64_t v = 0; v < V; v++)
        total += exp((logits[v] - logits[best]) / temperature);
    goal = draw(random) * total;
    for (int64_t v = 0; v < V; v++) {
        sum += exp((logits[v] - logits[best]) / temperature);
        if (sum > goal)
            return v;
    }
    return best;
}

/* Every row on its own: no row can depend on its neighbours. */
static void do_generate(const Json *params)
{
    const Model *m = model_of(params);
    const Json *prompts = member(params, "prompts", ARRAY);
    int64_t most = integer(params, "max_tokens", 0, 1 << 20), V = m->c.V;
    double temperature = number(params, "temperature", 0);
    uint64_t seed = (uint64_t)integer(params, "seed", 0, (int64_t)1 << 53), index = 0;
    int ignore_eos = truth(params, "ignore_eos");
    size_t size = state_row_size(&m->c);
    float *row = get(size, sizeof *row), *x = get((size_t)m->c.D, sizeof *x);
    float *logits = get((size_t)V, sizeof *logits);
    char *stopped = get(prompts->length, 1);
    Scratch scratch = new_scratch(&m->c);
    put("\"tokens\":[");
    for (const Json *prompt = prompts->first; prompt; prompt = prompt->next, index++) {
        uint64_t random = seed * 0xD1342543DE82EF95u + (index + 1) * 0x9E3779B97F4A7C15u;
        int64_t position = 0;
        if (prompt->kind != ARRAY || !prompt->first)
            fail("refused", "prompt %llu has no tokens", (unsigned long long)index);
        put(index ? ",[" : "[");
        for (const Json *token = prompt->first; token; token = token->next, position++)
            step(m, row, whole(token, "prompts", 0, V - 1), position, x, NULL, &scratch);
        for (int64_t n = 0; n < most; n++, position++) {
            head(logits, x, m->embedding, (size_t)V, (size_t)m->c.D, m->c.cap);
            int64_t token = next_token(logits, V, temperature, &random);
            if (token == m->c.eos && !ignore_eos) {
                stopped[index] = 1;
                break;
            }
            put(n ? ",%lld" : "%lld", (long long)token);
            if (n + 1 < most)
                step(m, row, token, position, x, NULL, &scratch);
        }
        put("]");
    }
    put("],\"finish_reasons\":[");
    for (size_t b = 0; b < prompts->length; b++)
        put("%s\"%s\"", b ? "," : "", stopped[b] ? "stop" : "length");
    put("]");
}

/* ---- 6 methods: states -------------------------------------------------------------------- */

static void do_init_state(const Json *params)
{
    const Model *m = model_of(params);
    put_state(new_state(&m->c, m->fingerprint, (size_t)integer(params, "batch", 0, INT32_MAX)));
}

/* An array of a state: its name, its shape, and where it stands in a row. */
typedef struct {
    char name[40];
    int dims;
    size_t shape[MOST_DIMS], start, size; /* numbers, within a row */
} Part;

/* The arrays of a state; `parts` has room for two of each block. */
static size_t parts_of(const State *s, Part *parts)
{
    const Config *c = &s->c;
    size_t B = s->batch, R = (size_t)c->R, K = (size_t)c->K, start = 0, count = 0;
    size_t W = (size_t)c->W, Q = (size_t)c->Q, d = (size_t)c->d;
    for (int64_t i = 0; i < c->depth; i++) {
        Part *first = &parts[count++], *second = &parts[count++];
        int recurs = c->kinds[i] == 'r';
        if (recurs) {
            *first = (Part){.dims = 3, .shape = {B, K - 1, R}, .size = (K - 1) * R};
            *second = (Part){.dims = 2, .shape = {B, R}, .size = R};
        } else {
            *first = *second = (Part){.dims = 4, .shape = {B, W, Q, d}, .size = W * Q * d};
        }
        first->start = start, second->start = start + first->size;
        start = second->start + second->size;
        snprintf(first->name, sizeof first->name, "layers.%lld.%s", (long long)i,
                 recurs ? "conv" : "keys");
        snprintf(second->name, sizeof second->name, "layers.%lld.%s", (long long)i,
                 recurs ? "rg_lru" : "values");
    }
    return count;
}

static void do_state_get(const Json *params)
{
    const State *s = state_with(member(params, "state", NUMBER));
    Part *parts = get(2 * (size_t)s->c.depth, sizeof *parts);
    size_t count = parts_of(s, parts);
    put_tensor("position", "int64", s->position, sizeof *s->position, 1, &s->batch);
    put(",\"arrays\":{");
    for (size_t n = 0; n < count; n++) {
        const Part *part = &parts[n];
        float *array = get(s->batch * part->size, sizeof *array);
        for (size_t b = 0; b < s->batch; b++)
            memcpy(array + b * part->size, s->values + b * s->row_size + part->start,
                   part->size * sizeof *array);
        put(n ? "," : "");
        put_floats(part->name, array, part->dims, part->shape);
    }
    put("},\"nbytes\":%zu", s->batch * (sizeof *s->position + s->row_size * sizeof *s->values));
}

static void do_state_set(const Json *params)
{
    const State *like = state_with(member(params, "state", NUMBER));
    const Json *arrays = member(params, "arrays", OBJECT);
    Tensor position = tensor(params, "position", 1);
    need_size(&position, 0, like->batch);
    State *s = new_state(&like->c, like->fingerprint, like->batch);
    memcpy(s->position, integers(&position), s->batch * sizeof *s->position);
    for (size_t b = 0; b < s->batch; b++)
        if (s->position[b] < 0 || s->position[b] > POSITION_LIMIT)
            fail("refused", "position %lld of row %zu is not in [0, 2^31]",
                 (long long)s->position[b], b);
    Part *parts = get(2 * (size_t)s->c.depth, sizeof *parts);
    size_t count = parts_of(s, parts);
    for (size_t n = 0; n < count; n++) {
        const Part *part = &parts[n];
        Tensor t = tensor(arrays, part->name, part->dims);
        for (int axis = 0; axis < part->dims; axis++)
            need_size(&t, axis, part->shape[axis]);
        const float *array = floats(&t);
        for (size_t b = 0; b < s->batch; b++)
            memcpy(s->values + b * s->row_size + part->start, array + b * part->size,
                   part->size * sizeof *array);
    }
    put_state(s);
}

static void do_fork(const Json *params)
{
    const State *s = state_with(member(params, "state", NUMBER));
    size_t copies = (size_t)integer(params, "copies", 1, 1 << 20), count = s->batch * copies;
    size_t *rows = get(count, sizeof *rows);
    for (size_t n = 0; n < count; n++)
        rows[n] = n / copies;
    put_state(selected(s, rows, count));
}

static void do_select(const Json *params)
{
    const State *s = state_with(member(params, "state", NUMBER));
    const Json *wanted = member(params, "rows", ARRAY);
    size_t *rows = get(wanted->length, sizeof *rows), count = 0;
    for (const Json *row = wanted->first; row; row = row->next) {
        rows[count] = (size_t)whole(row, "rows", 0, INT32_MAX);
        if (rows[count] >= s->batch)
            fail("refused", "row %zu does not exist in a state of %zu row(s)", rows[count],
                 s->batch);
        count++;
    }
    put_state(selected(s, rows, count));
}

static void do_concat(const Json *params)
{
    const Json *states = member(params, "states", ARRAY);
    size_t count = 0, filled = 0;
    if (!states->first)
        fail("refused", "concat needs at least one state");
    const State *first = state_with(states->first);
    for (const Json *handle = states->first; handle; handle = handle->next) {
        count += state_with(handle)->batch;
        if (state_with(handle)->fingerprint != first->fingerprint)
            fail("refused", "the states belong to different models");
    }
    State *s = new_state(&first->c, first->fingerprint, count);
    for (const Json *handle = states->first; handle; handle = handle->next) {
        const State *part = state_with(handle);
        memcpy(s->position + filled, part->position, part->batch * sizeof *s->position);
        memcpy(s->values + filled * s->row_size, part->values,
               part->batch * s->row_size * sizeof *s->values);
        filled += part->batch;
    }
    put_state(s);
}

/* What a state's file begins with; after it come positions and values. */
typedef struct {
    char format[24];
    uint64_t fingerprint, batch;
    Config c;
} StateHeader;

static const char state_format[24] = "griffin.c state 1\n";

static void do_state_save(const Json *params)
{
    const State *s = state_with(member(params, "state", NUMBER));
    const char *path = text(params, "path");
    char *partial = get(strlen(path) + 9, 1);
    StateHeader header = {.fingerprint = s->fingerprint, .batch = s->batch, .c = s->c};
    memcpy(header.format, state_format, sizeof state_format);
    sprintf(partial, "%s.partial", path); /* a file appears whole or not at all */
    FILE *file = fopen(partial, "wb");
    if (!file)
        fail("failed", "cannot write %.300s: %s", partial, strerror(errno));
    size_t values = s->batch * s->row_size;
    int wrong = fwrite(&header, sizeof header, 1, file) != 1;
    wrong |= fwrite(s->position, sizeof *s->position, s->batch, file) != s->batch;
    wrong |= fwrite(s->values, sizeof *s->values, values, file) != values;
    wrong |= fclose(file) != 0;
    if (wrong || rename(partial, path)) {
        remove(partial);
        fail("failed", "cannot write %.300s", path);
    }
}

static int is_whole_config(const Config *c)
{
    const int64_t most = 1 << 24;
    const int64_t sizes[] = {c->D, c->H, c->V, c->R, c->E, c->Q, c->W, c->K};
    for (size_t n = 0; n < sizeof sizes / sizeof *sizes; n++)
        if (sizes[n] < 1 || sizes[n] > most)
            return 0;
    if (c->depth < 1 || c->depth > MOST_BLOCKS || c->d < 0 || c->d > most ||
        c->rotary < 0 || c->rotary > c->d)
        return 0;
    for (int64_t i = 0; i < c->depth; i++)
        if (c->kinds[i] != 'r' && c->kinds[i] != 'a')
            return 0;
    return (double)c->W * (double)c->Q * (double)c->d * 8 <= (double)MOST_BYTES;
}

static void do_state_load(const Json *params)
{
    const char *path = text(params, "path");
    size_t size = file_size(path);
    StateHeader header = {0};
    FILE *file = fopen(path, "rb");
    int is_ours = file && fread(&header, sizeof header, 1, file) == 1;
    if (file)
        fclose(file);
    if (!is_ours || memcmp(header.format, state_format, sizeof state_format) ||
        !is_whole_config(&header.c) || header.batch > INT32_MAX)
        fail("refused", "%.300s is no state of this engine", path);
    State *s = new_state(&header.c, header.fingerprint, (size_t)header.batch);
    size_t values = s->batch * s->row_size;
    size_t expected = sizeof header + s->batch * sizeof *s->position + values * sizeof *s->values;
    file = size == expected ? fopen(path, "rb") : NULL;
    if (!file)
        fail("refused", "%.300s is damaged: %zu bytes, expected %zu", path, size, expected);
    int wrong = fseek(file, (long)sizeof header, SEEK_SET) != 0;
    wrong |= fread(s->position, sizeof *s->position, s->batch, file) != s->batch;
    wrong |= fread(s->values, sizeof *s->values, values, file) != values;
    fclose(file);
    for (size_t b = 0; b < s->batch; b++)
        wrong |= s->position[b] < 0 || s->position[b] > POSITION_LIMIT;
    if (wrong)
        fail("refused", "%.300s is damaged", path);
    put_state(s);
}

/* ---- 6 methods: the table ----------------------------------------------------------------- */

static int done;

static void do_hello(const Json *params);

static void do_shutdown(const Json *params)
{
    (void)params;
    done = 1;
}

static void do_free(const Json *params)
{
    const Json *models = member(params, "models", ARRAY), *states = member(params, "states", ARRAY);
    for (const Json *handle = models->first; handle; handle = handle->next)
        model_with(handle); /* all are looked up before the first is freed */
    for (const Json *handle = states->first; handle; handle = handle->next)
        state_with(handle);
    for (const Json *handle = models->first; handle; handle = handle->next)
        free_entry(&entries[(size_t)handle->number]);
    for (const Json *handle = states->first; handle; handle = handle->next)
        free_entry(&entries[(size_t)handle->number]);
}

static const struct {
    const char *name;
    void (*run)(const Json *params);
    int required;
} methods[] = {
    {"hello", do_hello, 1},
    {"model", do_model, 1},
    {"forward", do_forward, 1},
    {"free", do_free, 1},
    {"shutdown", do_shutdown, 1},
    {"hidden_states", do_hidden_states, 0},
    {"block", do_block, 0},
    {"generate", do_generate, 0},
    {"init_state", do_init_state, 0},
    {"state_get", do_state_get, 0},
    {"state_set", do_state_set, 0},
    {"fork", do_fork, 0},
    {"select", do_select, 0},
    {"concat", do_concat, 0},
    {"state_save", do_state_save, 0},
    {"state_load", do_state_load, 0},
    {"embed", do_embed, 0},
    {"rms_norm", do_rms_norm, 0},
    {"linear", do_linear, 0},
    {"gelu", do_gelu, 0},
    {"causal_conv", do_causal_conv, 0},
    {"gate", do_gate, 0},
    {"decay", do_decay, 0},
    {"scan", do_scan, 0},
    {"rg_lru", do_rg_lru, 0},
    {"rope", do_rope, 0},
    {"attention", do_attention, 0},
    {"logits", do_logits, 0},
};

#define METHODS (sizeof methods / sizeof *methods)

static void do_hello(const Json *params)
{
    if (strcmp(text(params, "protocol"), PROTOCOL))
        fail("refused", "this engine speaks " PROTOCOL);
    if (!is_null(params, "dtype") && strcmp(text(params, "dtype"), "float32"))
        fail("refused", "this engine computes in float32");
    put("\"protocol\":\"" PROTOCOL "\",\"name\":\"griffin.c\",\"versions\":{\"griffin.c\":\"1\"},"
        "\"dtypes\":[\"float32\"],\"capabilities\":[");
    for (size_t n = 0, count = 0; n < METHODS; n++)
        if (!methods[n].required)
            put(count++ ? ",\"%s\"" : "\"%s\"", methods[n].name);
    put("]");
}

/* ---- 7 the loop --------------------------------------------------------------------------- */

static char id[24]; /* of the request as it is replied, "null" until it is known */

static void answer(char *line, size_t length)
{
    const Json *request = read_json(line, length);
    if (request->kind != OBJECT)
        fail("failed", "a request is an object");
    int64_t number = integer(request, "id", 0, (int64_t)1 << 53);
    snprintf(id, sizeof id, "%lld", (long long)number);
    const char *method = text(request, "method");
    const Json *params = member(request, "params", OBJECT);
    for (size_t n = 0; n < METHODS; n++)
        if (!strcmp(methods[n].name, method)) {
            put("{\"id\":%s,\"result\":{", id);
            methods[n].run(params);
            put("}}\n");
            return;
        }
    fail("unsupported", "this engine has no method '%.60s'", method);
}

/* A line without its end; 0 at the end of the input. A line that is too long is read to its end,
 * and *length is then more than LONGEST_LINE. */
static int read_line(char **line, size_t *room, size_t *length)
{
    int c;
    *length = 0;
    while ((c = getchar()) != EOF && c != '\n') {
        if (*length + 1 >= *room && *length <= LONGEST_LINE) {
            char *more = realloc(*line, 2 * *room + 4096);
            if (!more)
                *length = LONGEST_LINE + 1;
            else
                *line = more, *room = 2 * *room + 4096;
        }
        if (*length <= LONGEST_LINE && *length + 1 < *room)
            (*line)[(*length)++] = (char)c;
    }
    if (*room > *length)
        (*line)[*length] = 0;
    return c != EOF || *length;
}

int main(int count, char **arguments)
{
    static char *line; /* static: kept over longjmp */
    static size_t room, length;
    const uint16_t one = 1;
    if (count != 2 || strcmp(arguments[1], "--stdio")) {
        fprintf(stderr, "usage: %s --stdio\nserves " PROTOCOL " on standard input and output\n",
                count ? arguments[0] : "griffin");
        return 2;
    }
    if (*(const unsigned char *)&one != 1 || sizeof(float) != 4 || sizeof(double) != 8) {
        fprintf(stderr, "this machine is big-endian or has other floats than IEEE 754's\n");
        return 2;
    }
    room = 4096, line = malloc(room);
    while (!done && line && read_line(&line, &room, &length)) {
        out_length = 0;
        strcpy(id, "null");
        if (setjmp(end_of_request) == 0) {
            if (length > LONGEST_LINE)
                fail("failed", "a line of more than %zu bytes", LONGEST_LINE);
            answer(line, length);
        } else if (setjmp(end_of_request) == 0) {
            out_length = 0;
            put("{\"id\":%s,\"error\":{\"kind\":\"%s\",\"message\":", id, error_kind);
            put_text(error_message);
            put("}}\n");
        } else {
            return 1; /* no memory even for an error */
        }
        taken = 0;
        give_back(&for_request);
        give_back(&for_object); /* what a request began to make before it failed */
        if (fwrite(out, 1, out_length, stdout) != out_length || fflush(stdout))
            break; /* nobody listens any more */
    }
    for (size_t n = 0; n < entry_count; n++)
        free_entry(&entries[n]);
    free(entries), free(out), free(line);
    return 0;
}
