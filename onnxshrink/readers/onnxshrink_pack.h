/* onnxshrink_pack.h - reads models packed by onnxshrink, format versions 1 and 2.
 *
 * C99 over zlib. In one source file of your program:
 *
 *     #define ONNXSHRINK_PACK_IMPLEMENTATION
 *     #include "onnxshrink_pack.h"
 *
 * and everywhere else without the #define. Link with -lz.
 *
 *     oxp_pack *pack;
 *     if (oxp_open_memory(bytes, size, limit, NULL, &pack) != OXP_OK) ...
 *     uint8_t *data = malloc(oxp_data_length(pack));   // the weights: the graph's external data
 *     if (oxp_read_data(pack, data, oxp_data_length(pack)) != OXP_OK) ...
 *     uint8_t *graph = malloc(oxp_graph_length(pack)); // an ONNX model that calls them
 *     if (oxp_read_graph(pack, graph, oxp_graph_length(pack)) != OXP_OK) ...
 *     ... AddExternalInitializersFromFilesInMemory with oxp_data_name(pack) and data, then
 *         CreateSessionFromArray with graph (ONNX Runtime's C API) ...
 *     oxp_close(pack);
 *
 * A pack of version 1 (model.onnx.pack) has no graph: it lies beside it, in model.onnx.
 *
 * A pack may come from anywhere: whatever it holds, these functions return an error or the right
 * bytes, never read or write out of bounds, and allocate no more than 3 MiB, a table whose rows are
 * dealt to parts once more while it is decoded, and a small
 * multiple of its header, which is at most 16 MiB when inflated. Nothing is written to disk. A pack is used by
 * one thread at a time.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#ifndef ONNXSHRINK_PACK_H
#define ONNXSHRINK_PACK_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum {
    OXP_OK = 0,
    OXP_IO,      /* the read function failed */
    OXP_MEMORY,  /* malloc failed */
    OXP_FORMAT,  /* the header breaks a rule of the format */
    OXP_LIMIT,   /* it unpacks to more than the limit */
    OXP_DAMAGED, /* a chunk's bytes are not what the header says */
    OXP_BASE,    /* an update without its base, or with another */
    OXP_ARGUMENT /* no such tensor, or the wrong size of buffer */
} oxp_status;

typedef struct oxp_pack oxp_pack;

typedef struct {
    const char* name;      /* UTF-8; a key, never a path */
    const char* dtype;     /* as in ONNX' TensorProto.DataType, for instance "BFLOAT16" */
    const uint64_t* shape; /* rank dimensions */
    uint32_t rank;
    uint64_t offset; /* in the unpacked data file */
    uint64_t nbytes;
} oxp_tensor;

/* Reads length bytes at offset into a buffer; returns 0 if it got them all. */
typedef int (*oxp_read_fn)(void* user, uint64_t offset, void* into, size_t length);

/* Opens a pack and checks its header. limit: bytes that it may unpack to. base: the pack that it
 * updates, or NULL; it must stay open as long as this one. On error *pack is NULL. */
oxp_status oxp_open(oxp_read_fn read, void* user, uint64_t size, uint64_t limit, oxp_pack* base,
                    oxp_pack** pack);
/* The same for a file in memory, for instance mapped; it must stay there until oxp_close. */
oxp_status oxp_open_memory(const void* data, size_t size, uint64_t limit, oxp_pack* base,
                           oxp_pack** pack);
void oxp_close(oxp_pack* pack);

const char* oxp_data_name(const oxp_pack* pack); /* base name of the unpacked data file */
uint64_t oxp_data_length(const oxp_pack* pack);
uint64_t oxp_graph_length(const oxp_pack* pack); /* 0 where there is no graph */
/* Version 1: sha256 of the .onnx, hexadecimal, or NULL. Always NULL in version 2. */
const char* oxp_model(const oxp_pack* pack);
size_t oxp_count(const oxp_pack* pack);
const oxp_tensor* oxp_get(const oxp_pack* pack, size_t index); /* NULL beyond the last */

/* Decodes one tensor; size must be its nbytes. */
oxp_status oxp_read_tensor(oxp_pack* pack, size_t index, void* into, size_t size);
/* Decodes all tensors, each at its offset; size must be the data length. */
oxp_status oxp_read_data(oxp_pack* pack, void* into, size_t size);
/* Decodes the graph, an ONNX model; size must be its length. */
oxp_status oxp_read_graph(oxp_pack* pack, void* into, size_t size);

/* sha256 as hexadecimal: to compare a model with oxp_model. */
void oxp_sha256(const void* data, size_t size, char hex[65]);

#ifdef __cplusplus
}
#endif
#endif /* ONNXSHRINK_PACK_H */

#ifdef ONNXSHRINK_PACK_IMPLEMENTATION
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#define OXP__MAX_INT ((UINT64_C(1) << 53) - 1)
#define OXP__MAX_HEADER (1u << 24)
#define OXP__CHUNK (1u << 18)
#define OXP__STREAMS 9 /* gaps and eight planes */

enum { OXP__STORED, OXP__DEFLATE, OXP__FROM_BASE };
enum { OXP__NONE, OXP__MASK, OXP__RUNS, OXP__JOINT };

typedef struct {
    uint64_t offset, packed;
    uint32_t method, raw, crc;
    const char* sha256;
} oxp__chunk;

typedef struct {
    oxp_tensor seen;
    size_t shape, first, chunks; /* places in the lists of numbers */
    size_t first_part, parts;    /* of a table whose rows are dealt to parts */
    uint64_t coded;              /* bytes that its coding holds: its own, or one a row */
    uint64_t unit, bits, block, table;
    int gaps, rotate, has_table;
} oxp__entry;

typedef struct {
    uint64_t* at;
    size_t count, room;
} oxp__numbers;

struct oxp_pack {
    oxp_read_fn read;
    void* user;
    const uint8_t* memory;
    uint64_t start;
    char* text; /* the header; names are decoded in place */
    char id[65];
    const char *model, *base_id, *data_name;
    uint64_t data_length;
    uint32_t version;
    size_t graph, graph_chunks; /* a place in the list of numbers, and how many */
    oxp__chunk* chunks;
    oxp__entry *entries, *parts;
    size_t chunk_count, chunk_room, entry_count, entry_room, part_count, part_room;
    oxp__numbers numbers;
    oxp_pack* base;
    uint8_t* scratch; /* OXP__STREAMS streams, the coded bytes and a table */
    z_stream zlib;
    int zlib_ready;
};

/* ------------------------------------------------------------------ sha256 (FIPS 180-4) */

static void oxp__sha256_block(uint32_t h[8], const uint8_t* p) {
    static const uint32_t k[64] = {
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4,
        0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe,
        0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f,
        0x4a7484aa, 0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7,
        0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc,
        0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b,
        0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116,
        0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
        0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7,
        0xc67178f2};
#define OXP__ROR(x, n) ((x) >> (n) | (x) << (32 - (n)))
    uint32_t w[64], v[8];
    for (int i = 0; i < 16; i++)
        w[i] = (uint32_t)p[4 * i] << 24 | (uint32_t)p[4 * i + 1] << 16 |
               (uint32_t)p[4 * i + 2] << 8 | p[4 * i + 3];
    for (int i = 16; i < 64; i++) {
        uint32_t a = w[i - 15], b = w[i - 2];
        w[i] = w[i - 16] + w[i - 7] + (OXP__ROR(a, 7) ^ OXP__ROR(a, 18) ^ a >> 3) +
               (OXP__ROR(b, 17) ^ OXP__ROR(b, 19) ^ b >> 10);
    }
    memcpy(v, h, sizeof v);
    for (int i = 0; i < 64; i++) {
        uint32_t a = v[0], e = v[4];
        uint32_t t = v[7] + (OXP__ROR(e, 6) ^ OXP__ROR(e, 11) ^ OXP__ROR(e, 25)) +
                     ((e & v[5]) ^ (~e & v[6])) + k[i] + w[i];
        uint32_t u = (OXP__ROR(a, 2) ^ OXP__ROR(a, 13) ^ OXP__ROR(a, 22)) +
                     ((a & v[1]) ^ (a & v[2]) ^ (v[1] & v[2]));
        memmove(v + 1, v, 7 * sizeof *v);
        v[4] += t;
        v[0] = t + u;
    }
    for (int i = 0; i < 8; i++) h[i] += v[i];
#undef OXP__ROR
}

void oxp_sha256(const void* data, size_t size, char hex[65]) {
    uint32_t h[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                     0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    const uint8_t* p = (const uint8_t*)data;
    uint8_t last[128] = {0};
    size_t rest = size % 64, tail = rest < 56 ? 64 : 128;
    for (size_t i = 0; i < size / 64; i++) oxp__sha256_block(h, p + 64 * i);
    if (rest) memcpy(last, p + size - rest, rest);
    last[rest] = 0x80;
    for (int i = 0; i < 8; i++) last[tail - 1 - i] = (uint8_t)((uint64_t)size * 8 >> (8 * i));
    for (size_t i = 0; i < tail; i += 64) oxp__sha256_block(h, last + i);
    for (int i = 0; i < 64; i++) hex[i] = "0123456789abcdef"[h[i / 8] >> (28 - 4 * (i % 8)) & 15];
    hex[64] = 0;
}

/* ------------------------------------------------------------------ JSON, as far as headers need
 * it The header has a fixed shape, so nothing here recurses, and every key must be a known one. */

typedef struct {
    char *p, *end; /* *end is 0 */
    oxp_status status;
} oxp__in;

static void oxp__fail(oxp__in* in, oxp_status status) {
    if (in->status == OXP_OK) in->status = status;
    in->p = in->end;
}

static char oxp__peek(oxp__in* in) {
    while (*in->p == ' ' || *in->p == '\n' || *in->p == '\r' || *in->p == '\t') in->p++;
    return *in->p;
}

static void oxp__expect(oxp__in* in, char c) {
    if (oxp__peek(in) == c && c)
        in->p++;
    else
        oxp__fail(in, OXP_FORMAT);
}

static int oxp__word(oxp__in* in, const char* word) {
    size_t n = strlen(word);
    oxp__peek(in);
    if ((size_t)(in->end - in->p) < n || memcmp(in->p, word, n)) return 0;
    in->p += n;
    return 1;
}

/* Whether the list or object that ends with `close` has another item. */
static int oxp__more(oxp__in* in, char close, int* first) {
    if (oxp__peek(in) == close) {
        in->p++;
        return 0;
    }
    if (!*first) oxp__expect(in, ',');
    *first = 0;
    return in->status == OXP_OK;
}

static uint64_t oxp__int(oxp__in* in) {
    uint64_t value = 0;
    int digits = 0;
    oxp__peek(in);
    for (; *in->p >= '0' && *in->p <= '9'; in->p++) {
        if (digits && !value) digits = 17; /* a leading zero */
        if (++digits > 16) break;
        value = value * 10 + (uint64_t)(*in->p - '0');
    }
    if (!digits || digits > 16 || value > OXP__MAX_INT) oxp__fail(in, OXP_FORMAT);
    return value;
}

static uint32_t oxp__hex4(oxp__in* in) {
    uint32_t value = 0;
    for (int i = 0; i < 4; i++, in->p++) {
        char c = *in->p, low = (char)(c | 32);
        if (c >= '0' && c <= '9')
            value = value * 16 + (uint32_t)(c - '0');
        else if (low >= 'a' && low <= 'f')
            value = value * 16 + (uint32_t)(low - 'a' + 10);
        else {
            oxp__fail(in, OXP_FORMAT);
            return 0;
        }
    }
    return value;
}

/* A string, decoded in place (it can only shrink) and ended with 0. Control characters, which no
 * string of a header may hold, are refused here. */
static const char* oxp__string(oxp__in* in) {
    oxp__expect(in, '"');
    char *start = in->p, *to = start;
    while (in->status == OXP_OK && *in->p != '"') {
        uint32_t c = (uint8_t)*in->p++;
        if (c >= 0x80) {
            *to++ = (char)c; /* the text was checked to be UTF-8 */
            continue;
        }
        if (c == '\\') {
            static const char from[] = "\"\\/bfnrt", into[] = "\"\\/\b\f\n\r\t";
            char escape = *in->p++;
            const char* found = escape ? strchr(from, escape) : NULL;
            if (escape == 'u') {
                c = oxp__hex4(in);
                if (c >= 0xD800 && c < 0xDC00 && in->p[0] == '\\' && in->p[1] == 'u') {
                    in->p += 2;
                    uint32_t low = oxp__hex4(in);
                    c = low >= 0xDC00 && low < 0xE000
                            ? 0x10000 + ((c - 0xD800) << 10) + (low - 0xDC00)
                            : 0;
                }
                if (c >= 0xD800 && c < 0xE000) c = 0;
            } else
                c = found ? (uint8_t)into[found - from] : 0;
        }
        if (c < 0x20 || c == 0x7F) {
            oxp__fail(in, OXP_FORMAT);
        } else if (c < 0x80) {
            *to++ = (char)c;
        } else {
            int more = c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
            *to++ = (char)((0xFF00 >> (more + 1) & 0xFF) | c >> (6 * more));
            while (more--) *to++ = (char)(0x80 | (c >> (6 * more) & 63));
        }
    }
    if (in->status != OXP_OK) return "";
    in->p++;
    *to = 0;
    return start;
}

static const char* oxp__digest(oxp__in* in) {
    const char* hex = oxp__string(in);
    if (strlen(hex) != 64 || strspn(hex, "0123456789abcdef") != 64) oxp__fail(in, OXP_FORMAT);
    return hex;
}

/* The number of the next key among `names`, or -1 when the object ends, having had each once. */
static int oxp__key(oxp__in* in, const char* const* names, unsigned* seen) {
    int first = !*seen, i = 0;
    if (!oxp__more(in, '}', &first)) {
        while (names[i]) i++;
        if (*seen != (1u << i) - 1) oxp__fail(in, OXP_FORMAT);
        return -1;
    }
    const char* key = oxp__string(in);
    oxp__expect(in, ':');
    while (names[i] && strcmp(names[i], key)) i++;
    if (!names[i] || *seen >> i & 1) oxp__fail(in, OXP_FORMAT);
    if (in->status != OXP_OK) return -1;
    *seen |= 1u << i;
    return i;
}

static int oxp__utf8(const uint8_t* p, const uint8_t* end) {
    while (p < end) {
        uint32_t c = *p++;
        int more = c < 0x80                ? 0
                   : c >= 0xC2 && c < 0xE0 ? 1
                   : c >= 0xE0 && c < 0xF0 ? 2
                   : c >= 0xF0 && c < 0xF5 ? 3
                                           : -1;
        if (more < 0 || end - p < more) return 0;
        uint32_t least = more == 2 ? 0x800 : more == 3 ? 0x10000 : 0;
        c &= 0xFFu >> (more ? more + 2 : 1);
        for (; more; more--) {
            if ((*p & 0xC0) != 0x80) return 0;
            c = c << 6 | (*p++ & 63u);
        }
        if (c < least || c > 0x10FFFF || (c >= 0xD800 && c < 0xE000)) return 0;
    }
    return 1;
}

/* Room for one more item. What a header can ask for is a small multiple of its own length. */
static int oxp__grow(oxp__in* in, void** items, size_t count, size_t* room, size_t size) {
    if (count < *room) return 1;
    size_t wanted = *room ? *room * 2 : 16;
    void* more = wanted > SIZE_MAX / size ? NULL : realloc(*items, wanted * size);
    if (!more) {
        oxp__fail(in, OXP_MEMORY);
        return 0;
    }
    *items = more;
    *room = wanted;
    return 1;
}

static size_t oxp__list(oxp__in* in, oxp__numbers* numbers) {
    size_t count = 0;
    int first = 1;
    oxp__expect(in, '[');
    while (oxp__more(in, ']', &first)) {
        void* at = numbers->at;
        if (!oxp__grow(in, &at, numbers->count, &numbers->room, sizeof *numbers->at)) break;
        numbers->at = (uint64_t*)at;
        numbers->at[numbers->count++] = oxp__int(in);
        count++;
    }
    return count;
}

/* [method, offset, packed, raw, crc]; version 2 leaves out the offset, of a chunk in the base
 * packed. The sha256 of such a one follows. */
static void oxp__parse_chunk(oxp__in* in, uint32_t version, oxp__chunk* chunk) {
    uint64_t field[5] = {0};
    int first = 1, count = 0, numbers = version == 1 ? 5 : 4;
    oxp__expect(in, '[');
    while (oxp__more(in, ']', &first)) {
        if (count < numbers)
            field[count] = oxp__int(in);
        else if (count == numbers)
            chunk->sha256 = oxp__digest(in);
        if (++count > numbers + 1) oxp__fail(in, OXP_FORMAT);
    }
    int in_base = field[0] == OXP__FROM_BASE;
    if (version == 2) {
        memmove(field + 2, field + 1, 3 * sizeof *field);
        field[in_base ? 2 : 1] = 0;
    }
    if (count != numbers + in_base || field[0] > OXP__FROM_BASE || field[3] > OXP__CHUNK ||
        field[4] > UINT32_MAX)
        oxp__fail(in, OXP_FORMAT);
    chunk->method = (uint32_t)field[0];
    chunk->offset = field[1];
    chunk->packed = field[2];
    chunk->raw = (uint32_t)field[3];
    chunk->crc = (uint32_t)field[4];
}

/* How some bytes are coded: the key-th of unit, bits, gaps, rotate, table, block and chunks. */
static void oxp__parse_coding(oxp__in* in, oxp_pack* pack, oxp__entry* entry, int key) {
    static const char* const gaps[] = {"none", "mask", "runs", "joint"};
    const char* text;
    switch (key) {
        case 0: entry->unit = oxp__int(in); break;
        case 1: entry->bits = oxp__int(in); break;
        case 2:
            text = oxp__string(in);
            while (entry->gaps < 4 && strcmp(gaps[entry->gaps], text)) entry->gaps++;
            break;
        case 3:
            entry->rotate = oxp__word(in, "true");
            if (!entry->rotate && !oxp__word(in, "false")) oxp__fail(in, OXP_FORMAT);
            break;
        case 4:
            entry->has_table = !oxp__word(in, "null");
            if (entry->has_table) entry->table = oxp__int(in);
            break;
        case 5: entry->block = oxp__int(in); break;
        default:
            entry->first = pack->numbers.count;
            entry->chunks = oxp__list(in, &pack->numbers);
    }
}

/* Room for one more entry, which is all zeros; NULL when there is none. */
static oxp__entry* oxp__add(oxp__in* in, oxp__entry** entries, size_t* count, size_t* room) {
    void* items = *entries;
    if (!oxp__grow(in, &items, *count, room, sizeof **entries)) return NULL;
    *entries = (oxp__entry*)items;
    return (oxp__entry*)memset(*entries + (*count)++, 0, sizeof **entries);
}

static void oxp__parse_parts(oxp__in* in, oxp_pack* pack, oxp__entry* entry) {
    static const char* const keys[] = {"length", "unit",  "bits",   "gaps", "rotate",
                                       "table",  "block", "chunks", NULL};
    int first = 1;
    entry->first_part = pack->part_count;
    oxp__expect(in, '[');
    while (oxp__more(in, ']', &first)) {
        unsigned seen = 0;
        oxp__entry* part = oxp__add(in, &pack->parts, &pack->part_count, &pack->part_room);
        if (!part) break;
        entry->parts++;
        oxp__expect(in, '{');
        for (int key; (key = oxp__key(in, keys, &seen)) >= 0;) {
            if (key)
                oxp__parse_coding(in, pack, part, key - 1);
            else
                part->coded = oxp__int(in);
        }
    }
}

static void oxp__parse_tensor(oxp__in* in, oxp_pack* pack, oxp__entry* entry) {
    static const char* const keys[2][13] = {
        {"name", "dtype", "shape", "offset", "unit", "bits", "gaps", "rotate", "table", "block",
         "chunks", NULL},
        {"name", "dtype", "shape", "offset", "unit", "bits", "gaps", "rotate", "table", "block",
         "chunks", "parts", NULL}};
    unsigned seen = 0;
    oxp__expect(in, '{');
    for (int key; (key = oxp__key(in, keys[pack->version - 1], &seen)) >= 0;) switch (key) {
            case 0: entry->seen.name = oxp__string(in); break;
            case 1: entry->seen.dtype = oxp__string(in); break;
            case 2:
                entry->shape = pack->numbers.count;
                entry->seen.rank = (uint32_t)oxp__list(in, &pack->numbers);
                break;
            case 3: entry->seen.offset = oxp__int(in); break;
            case 11: oxp__parse_parts(in, pack, entry); break;
            default: oxp__parse_coding(in, pack, entry, key - 4);
        }
}

static void oxp__parse(oxp__in* in, oxp_pack* pack) {
    static const char* const tops[2][6] = {{"model", "base", "data", "chunks", "tensors", NULL},
                                           {"graph", "base", "data", "chunks", "tensors", NULL}};
    const char* const* top = tops[pack->version - 1];
    static const char* const data[] = {"name", "length", NULL};
    unsigned seen = 0, inner = 0;
    oxp__expect(in, '{');
    for (int key; (key = oxp__key(in, top, &seen)) >= 0;) {
        int first = 1;
        void* items;
        if (!key && pack->version == 2) {
            pack->graph = pack->numbers.count;
            pack->graph_chunks = oxp__list(in, &pack->numbers);
        } else if (key < 2) {
            const char* digest = oxp__word(in, "null") ? NULL : oxp__digest(in);
            *(key ? &pack->base_id : &pack->model) = digest;
        } else if (key == 2) {
            oxp__expect(in, '{');
            for (int k; (k = oxp__key(in, data, &inner)) >= 0;) {
                if (k)
                    pack->data_length = oxp__int(in);
                else
                    pack->data_name = oxp__string(in);
            }
        } else {
            oxp__expect(in, '[');
            while (oxp__more(in, ']', &first)) {
                if (key == 3) {
                    items = pack->chunks;
                    if (!oxp__grow(in, &items, pack->chunk_count, &pack->chunk_room,
                                   sizeof *pack->chunks))
                        break;
                    pack->chunks = (oxp__chunk*)items;
                    memset(pack->chunks + pack->chunk_count, 0, sizeof *pack->chunks);
                    oxp__parse_chunk(in, pack->version, pack->chunks + pack->chunk_count++);
                } else {
                    oxp__entry* entry =
                        oxp__add(in, &pack->entries, &pack->entry_count, &pack->entry_room);
                    if (!entry) break;
                    oxp__parse_tensor(in, pack, entry);
                }
            }
        }
    }
    if (in->status == OXP_OK && (oxp__peek(in) || in->p != in->end)) oxp__fail(in, OXP_FORMAT);
}

/* ------------------------------------------------------------------ checks, before anything is
 * read */

static uint64_t oxp__ceil(uint64_t a, uint64_t b) { return a / b + (a % b != 0); }
static uint64_t oxp__align(uint64_t a, uint64_t to) { return oxp__ceil(a, to) * to; }

static int oxp__check_chunks(oxp_pack* pack, uint64_t area) {
    uint64_t end = 0;
    for (size_t i = 0; i < pack->chunk_count; i++) {
        oxp__chunk* c = pack->chunks + i;
        if (c->method == OXP__FROM_BASE) {
            if (!pack->base_id || c->packed) return 0;
            continue;
        }
        if (pack->version == 2)
            c->offset = end;
        else if (c->offset != oxp__align(end, c->method == OXP__STORED ? 64 : 8))
            return 0;
        if (c->method == OXP__STORED
                ? c->packed != c->raw
                : !c->packed || c->packed >= c->raw || c->raw > 1032 * c->packed)
            return 0;
        end = c->offset + c->packed;
        if (end > area) return 0;
    }
    return end == area;
}

/* The chunks of the graph exist; how long is it? A header names at most 2^23 of them. */
static int oxp__check_graph(const oxp_pack* pack, uint64_t* length) {
    *length = 0;
    for (size_t i = 0; i < pack->graph_chunks; i++) {
        uint64_t id = pack->numbers.at[pack->graph + i];
        if (id >= pack->chunk_count) return 0;
        *length += pack->chunks[id].raw;
    }
    return 1;
}

static unsigned oxp__planes(const oxp__entry* e) {
    return e->gaps == OXP__JOINT ? 0 : e->bits <= 8 ? 1 : (unsigned)e->bits / 8;
}

static unsigned oxp__streams(const oxp__entry* e) {
    return oxp__planes(e) + (e->gaps != OXP__NONE);
}

static unsigned oxp__dtype_bits(const char* dtype) {
    static const struct {
        unsigned bits;
        const char* names;
    } types[] = {
        {2, " INT2 UINT2 "},
        {4, " INT4 UINT4 FLOAT4E2M1 "},
        {8, " BOOL INT8 UINT8 FLOAT8E4M3FN FLOAT8E4M3FNUZ FLOAT8E5M2 FLOAT8E5M2FNUZ FLOAT8E8M0 "},
        {16, " INT16 UINT16 FLOAT16 BFLOAT16 "},
        {32, " INT32 UINT32 FLOAT "},
        {64, " INT64 UINT64 DOUBLE COMPLEX64 "},
        {128, " COMPLEX128 "}};
    size_t n = strlen(dtype);
    for (size_t i = 0; n && !strchr(dtype, ' ') && i < sizeof types / sizeof *types; i++)
        for (const char* at = types[i].names; (at = strstr(at, dtype)); at++)
            if (at[-1] == ' ' && at[n] == ' ') return types[i].bits;
    return 0;
}

static int oxp__check_lengths(const oxp_pack* pack, const oxp__entry* e, uint64_t block,
                              uint64_t symbols) {
    const uint64_t* id = pack->numbers.at + e->first + block * oxp__streams(e);
    uint64_t narrow = e->bits < 8 ? e->bits : 8, most = oxp__ceil(symbols * narrow, 8);
    unsigned streams = oxp__streams(e), values = streams - oxp__planes(e);
    uint64_t first = pack->chunks[id[0]].raw;
    if (e->gaps == OXP__MASK && first != oxp__ceil(symbols, 8)) return 0;
    if (e->gaps >= OXP__RUNS && first > symbols) return 0;
    for (unsigned i = values; i < streams; i++) {
        uint64_t length = pack->chunks[id[i]].raw;
        if (length > most || length != pack->chunks[id[values]].raw) return 0;
        if (e->gaps == OXP__NONE && length != most) return 0;
        if (e->gaps == OXP__RUNS && length != oxp__ceil(first * narrow, 8)) return 0;
    }
    return 1;
}

/* Whether the chunks of an entry can hold the bytes that they code, by their lengths alone. */
static int oxp__check_coding(const oxp_pack* pack, const oxp__entry* e) {
    uint64_t unit = e->unit, bits = e->bits;
    const uint64_t* numbers = pack->numbers.at;
    if (unit != 2 && unit != 4 && unit != 8 && unit != 16 && unit != 32 && unit != 64) return 0;
    if (e->has_table ? (bits != 1 && bits != 2 && bits != 4 && bits != 8) || bits > unit
                     : bits != unit)
        return 0;
    if (e->gaps > OXP__JOINT || (e->gaps == OXP__JOINT && bits > 4) || (e->rotate && bits <= 8))
        return 0;
    if (e->block < 64 || e->block > 1u << 21 || (e->block & (e->block - 1))) return 0;
    if (e->has_table) {
        uint64_t size = unit < 8 ? 1 : unit / 8;
        if (e->table >= pack->chunk_count) return 0;
        uint64_t table = pack->chunks[e->table].raw;
        if (!table || table > size << bits || table % size) return 0;
    }
    if (e->coded * 8 % unit) return 0;
    uint64_t symbols = e->coded * 8 / unit, blocks = oxp__ceil(symbols, e->block);
    if (blocks > e->chunks || blocks * oxp__streams(e) != e->chunks) return 0;
    for (size_t i = 0; i < e->chunks; i++)
        if (numbers[e->first + i] >= pack->chunk_count) return 0;
    for (uint64_t b = 0; b < blocks; b++) {
        uint64_t rest = symbols - b * e->block;
        if (!oxp__check_lengths(pack, e, b, rest < e->block ? rest : e->block)) return 0;
    }
    return 1;
}

/* Parts are rows of a tensor, all of them; its own coding is then of a byte a row. */
static int oxp__check_parts(const oxp_pack* pack, oxp__entry* e) {
    uint64_t rows = e->seen.rank ? e->seen.shape[0] : 0, sum = 0;
    if (!rows || !e->seen.nbytes || e->seen.nbytes % rows || e->parts < 2 || e->parts > 256)
        return 0;
    for (size_t i = 0; i < e->parts; i++) {
        const oxp__entry* part = pack->parts + e->first_part + i;
        if (part->coded % (e->seen.nbytes / rows) || part->coded > e->seen.nbytes - sum ||
            !oxp__check_coding(pack, part))
            return 0;
        sum += part->coded;
    }
    e->coded = rows;
    return sum == e->seen.nbytes;
}

static int oxp__check_tensor(oxp_pack* pack, oxp__entry* e) {
    uint64_t type = oxp__dtype_bits(e->seen.dtype), most, count = 1, *numbers = pack->numbers.at;
    size_t length = strlen(e->seen.name);
    if (!type || !length || length > 4096 || e->seen.rank > 64) return 0;
    most = 8 * OXP__MAX_INT / type;
    for (uint32_t i = 0; i < e->seen.rank; i++)
        if (!numbers[e->shape + i]) count = 0;
    for (uint32_t i = 0; count && i < e->seen.rank; i++) {
        if (count > most / numbers[e->shape + i]) return 0;
        count *= numbers[e->shape + i];
    }
    e->seen.shape = numbers + e->shape;
    e->seen.nbytes = oxp__ceil(count * type, 8);

    e->coded = e->seen.nbytes;
    if (e->parts && !oxp__check_parts(pack, e)) return 0;
    return oxp__check_coding(pack, e);
}

static int oxp__by_name(const void* a, const void* b) {
    return strcmp(*(const char* const*)a, *(const char* const*)b);
}

static oxp_status oxp__check(oxp_pack* pack, uint64_t area, uint64_t limit) {
    size_t length = strlen(pack->data_name), n = pack->entry_count;
    uint64_t end = 0, graph;
    if (pack->data_length > limit) return OXP_LIMIT;
    if (!length || length > 255 || strpbrk(pack->data_name, "/\\:") ||
        !strcmp(pack->data_name, ".") || !strcmp(pack->data_name, "..") ||
        !oxp__check_chunks(pack, area) || !oxp__check_graph(pack, &graph))
        return OXP_FORMAT;
    if (graph > limit - pack->data_length) return OXP_LIMIT;
    const char** names = (const char**)malloc((n + 1) * sizeof *names);
    if (!names) return OXP_MEMORY;
    int good = 1;
    for (size_t i = 0; good && i < n; i++) {
        good = oxp__check_tensor(pack, pack->entries + i) && pack->entries[i].seen.offset >= end;
        end = pack->entries[i].seen.offset + pack->entries[i].seen.nbytes;
        names[i] = pack->entries[i].seen.name;
    }
    if (good) qsort(names, n, sizeof *names, oxp__by_name);
    for (size_t i = 1; good && i < n; i++) good = strcmp(names[i - 1], names[i]) != 0;
    free((void*)names);
    return good && end == pack->data_length ? OXP_OK : OXP_FORMAT;
}

static oxp_status oxp__check_base(const oxp_pack* pack) {
    const oxp_pack* base = pack->base;
    if (!base) return OXP_OK; /* it can be looked at, but its tensors cannot be read */
    if (!pack->base_id || strcmp(pack->base_id, base->id) || base->base_id) return OXP_BASE;
    for (size_t i = 0; i < pack->chunk_count; i++) {
        const oxp__chunk* c = pack->chunks + i;
        if (c->method != OXP__FROM_BASE) continue;
        if (c->offset >= base->chunk_count) return OXP_BASE;
        if (base->chunks[c->offset].raw != c->raw || base->chunks[c->offset].crc != c->crc)
            return OXP_BASE;
    }
    return OXP_OK;
}

/* ------------------------------------------------------------------ decoding */

/* Raw deflate that must hold exactly `length` bytes. */
static int oxp__inflate(oxp_pack* pack, uint8_t* coded, size_t size, void* into, size_t length) {
    z_stream* z = &pack->zlib;
    if (inflateReset(z) != Z_OK) return 0;
    z->next_in = coded;
    z->avail_in = (uInt)size;
    z->next_out = (Bytef*)into;
    z->avail_out = (uInt)length;
    return inflate(z, Z_FINISH) == Z_STREAM_END && !z->avail_out && !z->avail_in;
}

static oxp_status oxp__fetch(oxp_pack* pack, uint64_t id, uint8_t* into) {
    const oxp__chunk* c = pack->chunks + id;
    if (c->method == OXP__FROM_BASE) {
        char hex[65];
        if (!pack->base) return OXP_BASE;
        oxp_status status = oxp__fetch(pack->base, c->offset, into); /* once: a base has no base */
        if (status != OXP_OK) return status;
        oxp_sha256(into, c->raw, hex);
        return strcmp(hex, c->sha256) ? OXP_BASE : OXP_OK;
    }
    uint8_t* coded =
        c->method == OXP__STORED ? into : pack->scratch + OXP__STREAMS * (size_t)OXP__CHUNK;
    if (c->packed && pack->read(pack->user, pack->start + c->offset, coded, (size_t)c->packed))
        return OXP_IO;
    if (c->method == OXP__DEFLATE && !oxp__inflate(pack, coded, (size_t)c->packed, into, c->raw))
        return OXP_DAMAGED;
    return crc32(0, into, c->raw) == c->crc ? OXP_OK : OXP_DAMAGED;
}

typedef struct {
    const oxp__entry* e;
    const uint8_t *values[8], *table;
    uint64_t entries; /* of the table */
    uint8_t* into;
} oxp__block;

/* Puts the k-th symbol of the streams at place i; 0 if it is not in the table. */
static int oxp__put(const oxp__block* b, uint64_t i, uint64_t k) {
    const oxp__entry* e = b->e;
    unsigned bits = (unsigned)e->bits, unit = (unsigned)e->unit;
    uint64_t v = 0;
    if (bits <= 8) {
        v = b->values[0][k * bits / 8] >> (k * bits % 8) & ((1u << bits) - 1);
    } else {
        for (unsigned p = 0; p < bits / 8; p++) v |= (uint64_t)b->values[p][k] << (8 * p);
        if (e->rotate) v = v >> 1 | (v & 1) << (bits - 1);
    }
    if (b->table) {
        unsigned size = unit < 8 ? 1 : unit / 8;
        const uint8_t* element = b->table + v * size;
        if (v >= b->entries) return 0;
        v = 0;
        for (unsigned p = 0; p < size; p++) v |= (uint64_t)element[p] << (8 * p);
    }
    if (unit < 8) {
        unsigned shift = (unsigned)(i * unit % 8);
        uint8_t* byte = b->into + i * unit / 8;
        *byte = (uint8_t)((*byte & ~(((1u << unit) - 1) << shift)) | v << shift);
    } else {
        for (unsigned p = 0; p < unit / 8; p++)
            b->into[i * (unit / 8) + p] = (uint8_t)(v >> (8 * p));
    }
    return 1;
}

static oxp_status oxp__decode_block(oxp_pack* pack, oxp__block* b, uint64_t number,
                                    uint64_t symbols) {
    static const uint8_t zeros[8] = {0};
    const oxp__entry* e = b->e;
    const uint64_t* id = pack->numbers.at + e->first + number * oxp__streams(e);
    unsigned streams = oxp__streams(e), planes = oxp__planes(e),
             limit = 1u << (e->bits < 8 ? e->bits : 8);
    uint8_t* stream = pack->scratch;
    for (unsigned i = 0; i < streams; i++) {
        oxp_status status = oxp__fetch(pack, id[i], stream + i * (size_t)OXP__CHUNK);
        if (status != OXP_OK) return status;
    }
    for (unsigned p = 0; p < planes; p++)
        b->values[p] = stream + (streams - planes + p) * (size_t)OXP__CHUNK;
    if (e->unit < 8)
        memset(b->into, 0, (size_t)(symbols * e->unit / 8)); /* then bits are set in it */
    if (e->gaps == OXP__NONE) {
        if (!b->table && e->bits <= 8) {
            memcpy(b->into, stream, (size_t)(symbols * e->bits / 8));
            return OXP_OK;
        }
        for (uint64_t i = 0; i < symbols; i++)
            if (!oxp__put(b, i, i)) return OXP_DAMAGED;
        return OXP_OK;
    }
    /* First symbol 0 everywhere, then the others. */
    oxp__block zero = *b;
    for (int p = 0; p < 8; p++) zero.values[p] = zeros;
    for (uint64_t i = 0; i < symbols; i++) oxp__put(&zero, i, 0);
    uint64_t length = pack->chunks[id[0]].raw, kept = 0, at = 0;
    if (e->gaps == OXP__MASK) {
        uint64_t there = pack->chunks[id[1]].raw;
        for (uint64_t i = 0; i < symbols; i++) kept += stream[i / 8] >> (i % 8) & 1;
        if (there != (e->bits < 8 ? oxp__ceil(kept * e->bits, 8) : kept)) return OXP_DAMAGED;
        for (uint64_t i = 0, k = 0; i < symbols; i++)
            if (stream[i / 8] >> (i % 8) & 1 && !oxp__put(b, i, k++)) return OXP_DAMAGED;
        return OXP_OK;
    }
    for (uint64_t k = 0; k < length; k++, at++) {
        uint8_t one[8];
        at += e->gaps == OXP__JOINT ? stream[k] >> e->bits : stream[k];
        if (at >= symbols) return OXP_DAMAGED;
        if (e->gaps == OXP__JOINT) {
            one[0] = (uint8_t)(stream[k] & (limit - 1));
            b->values[0] = one;
        }
        if (!oxp__put(b, at, e->gaps == OXP__JOINT ? 0 : k)) return OXP_DAMAGED;
    }
    return OXP_OK;
}

/* Decodes the bytes that an entry's own coding holds. */
static oxp_status oxp__decode(oxp_pack* pack, const oxp__entry* e, uint8_t* into) {
    uint64_t symbols = e->coded * 8 / e->unit;
    oxp__block b = {e, {NULL}, NULL, 0, into};
    if (e->has_table && symbols) {
        uint8_t* table = pack->scratch + (OXP__STREAMS + 1) * (size_t)OXP__CHUNK;
        uint64_t element = e->unit < 8 ? 1 : e->unit / 8;
        oxp_status status = oxp__fetch(pack, e->table, table);
        if (status != OXP_OK) return status;
        b.table = table;
        b.entries = pack->chunks[e->table].raw / element;
        for (uint64_t i = 0; e->unit < 8 && i < b.entries; i++)
            if (table[i] >> e->unit) return OXP_DAMAGED;
    }
    for (uint64_t number = 0, from = 0; from < symbols; number++, from += e->block) {
        uint64_t rest = symbols - from;
        b.into = into + from * e->unit / 8;
        oxp_status status = oxp__decode_block(pack, &b, number, rest < e->block ? rest : e->block);
        if (status != OXP_OK) return status;
    }
    return OXP_OK;
}

/* Decodes a part and puts its rows in their places, which `dealt` tells. */
static oxp_status oxp__put_rows(oxp_pack* pack, const oxp__entry* e, size_t number,
                                const uint8_t* dealt, uint8_t* into) {
    const oxp__entry* part = pack->parts + e->first_part + number;
    size_t rows = (size_t)e->coded, row = (size_t)(e->seen.nbytes / e->coded), length = 0;
    for (size_t i = 0; i < rows; i++) length += dealt[i] == number ? row : 0;
    if (length != part->coded) return OXP_DAMAGED;
    uint8_t* values = (uint8_t*)malloc(length + 1);
    oxp_status status = values ? oxp__decode(pack, part, values) : OXP_MEMORY;
    for (size_t i = 0, at = 0; status == OXP_OK && i < rows; i++) {
        if (dealt[i] != number) continue;
        memcpy(into + i * row, values + at, row);
        at += row;
    }
    free(values);
    return status;
}

oxp_status oxp_read_tensor(oxp_pack* pack, size_t index, void* into, size_t size) {
    if (index >= pack->entry_count || size != pack->entries[index].seen.nbytes) return OXP_ARGUMENT;
    const oxp__entry* e = pack->entries + index;
    if (!e->parts) return oxp__decode(pack, e, (uint8_t*)into);
    uint8_t* dealt = (uint8_t*)malloc((size_t)e->coded);
    oxp_status status = dealt ? oxp__decode(pack, e, dealt) : OXP_MEMORY;
    /* The parts hold all rows, so each has its place when each part has as many as it holds. */
    for (size_t i = 0; status == OXP_OK && i < e->parts; i++)
        status = oxp__put_rows(pack, e, i, dealt, (uint8_t*)into);
    free(dealt);
    return status;
}

oxp_status oxp_read_data(oxp_pack* pack, void* into, size_t size) {
    if (size != pack->data_length) return OXP_ARGUMENT;
    if (size) memset(into, 0, size);
    for (size_t i = 0; i < pack->entry_count; i++) {
        const oxp_tensor* t = &pack->entries[i].seen;
        if (!t->nbytes) continue;
        oxp_status status = oxp_read_tensor(pack, i, (uint8_t*)into + t->offset, (size_t)t->nbytes);
        if (status != OXP_OK) return status;
    }
    return OXP_OK;
}

uint64_t oxp_graph_length(const oxp_pack* pack) {
    uint64_t length;
    oxp__check_graph(pack, &length);
    return length;
}

oxp_status oxp_read_graph(oxp_pack* pack, void* into, size_t size) {
    uint8_t* to = (uint8_t*)into;
    if (size != oxp_graph_length(pack)) return OXP_ARGUMENT;
    for (size_t i = 0; i < pack->graph_chunks; i++) {
        uint64_t id = pack->numbers.at[pack->graph + i];
        oxp_status status = oxp__fetch(pack, id, to);
        if (status != OXP_OK) return status;
        to += pack->chunks[id].raw;
    }
    return OXP_OK;
}

/* ------------------------------------------------------------------ opening */

static uint64_t oxp__little(const uint8_t* p, int bytes) {
    uint64_t value = 0;
    while (bytes--) value = value << 8 | p[bytes];
    return value;
}

/* What a pack of version 2 begins with: an ONNX model that tells what it is. Five bytes follow, the
 * length of the rest. */
static const char oxp__stub[] =
    "\x08\x03\x12\nonnxshrink\x1a\x11"
    "format of packs 2:~\ng\x12\x01y\"V"
    "this model is packed: 'onnxshrink unpack' makes it plain, onnxshrink's readers open it"
    ":\nonnxshrink\x12\x06packedb\x0b\n\x01y\x12\x06\n\x04\x08\x01\x12\x00"
    "B\x04\n\x00\x10\x07"
    "B\x0e\n\nonnxshrink\x10\x01\x82\xb5\x18";

enum { OXP__STUB = sizeof oxp__stub - 1 + 5, OXP__HEAD = 32 };

static int oxp__is_stub(const uint8_t* begins, uint64_t rest) {
    const uint8_t* length = begins + OXP__STUB - 5;
    if (rest >> 35) rest = (UINT64_C(1) << 35) - 1;
    for (int i = 0; i < 5; i++)
        if (length[i] != ((rest >> (7 * i) & 127) | (i < 4 ? 128 : 0))) return 0;
    return !memcmp(begins, oxp__stub, OXP__STUB - 5);
}

/* Where the header is in the file, and what stands before it. */
typedef struct {
    uint64_t at, stored, length;
    uint32_t crc;
} oxp__head;

static oxp_status oxp__find(oxp_pack* pack, uint64_t size, oxp__head* head) {
    uint8_t begins[OXP__STUB + OXP__HEAD], *first = begins;
    if (size < OXP__HEAD) return OXP_FORMAT;
    if (pack->read(pack->user, 0, begins, OXP__HEAD)) return OXP_IO;
    pack->version = memcmp(begins, "ONXSPAK1", 8) ? 2 : 1;
    head->at = 0;
    if (pack->version == 1) {
        head->stored = head->length = oxp__little(first + 16, 8);
        if (oxp__little(first + 8, 4) != 1 || oxp__little(first + 12, 4) ||
            oxp__little(first + 28, 4))
            return OXP_FORMAT;
    } else {
        if (size < sizeof begins) return OXP_FORMAT;
        if (pack->read(pack->user, 0, begins, sizeof begins)) return OXP_IO;
        first += head->at = OXP__STUB;
        head->stored = oxp__little(first + 12, 4);
        head->length = oxp__little(first + 16, 4);
        if (memcmp(first, "ONXSPAK2", 8) || !oxp__is_stub(begins, size - OXP__STUB) ||
            oxp__little(first + 8, 4) || oxp__little(first + 24, 8) ||
            head->length > 64 * head->stored)
            return OXP_FORMAT;
    }
    head->crc = (uint32_t)oxp__little(first + (pack->version == 1 ? 24 : 20), 4);
    if (head->length > OXP__MAX_HEADER || head->stored > OXP__MAX_HEADER) return OXP_FORMAT;
    pack->start = head->at + OXP__HEAD + head->stored;
    if (pack->version == 1) pack->start = oxp__align(pack->start, 64);
    return pack->start > size ? OXP_FORMAT : OXP_OK;
}

static oxp_status oxp__load(oxp_pack* pack, uint64_t size, uint64_t limit) {
    oxp__head head;
    oxp_status status = oxp__find(pack, size, &head);
    if (status != OXP_OK) return status;
    size_t stored = (size_t)head.stored, length = (size_t)head.length;
    uint8_t* text = (uint8_t*)malloc(OXP__HEAD + stored + 1);
    pack->text = (char*)text;
    pack->scratch = (uint8_t*)malloc((OXP__STREAMS + 2) * (size_t)OXP__CHUNK);
    if (!text || !pack->scratch || inflateInit2(&pack->zlib, -15) != Z_OK) return OXP_MEMORY;
    pack->zlib_ready = 1;
    if (pack->read(pack->user, head.at, text, OXP__HEAD + stored)) return OXP_IO;
    oxp_sha256(text, OXP__HEAD + stored, pack->id);
    text += OXP__HEAD;
    if (crc32(0, text, (uInt)stored) != head.crc) return OXP_FORMAT;
    if (pack->version == 2) {
        uint8_t* inflated = (uint8_t*)malloc(length + 1);
        int good = inflated && oxp__inflate(pack, text, stored, inflated, length);
        free(pack->text);
        pack->text = (char*)(text = inflated);
        if (!good) return inflated ? OXP_FORMAT : OXP_MEMORY;
    }
    oxp__in in = {(char*)text, (char*)text + length, OXP_OK};
    *in.end = 0;
    if (!oxp__utf8(text, text + length)) return OXP_FORMAT;
    oxp__parse(&in, pack);
    if (in.status != OXP_OK) return in.status;
    status = oxp__check(pack, size - pack->start, limit);
    return status == OXP_OK ? oxp__check_base(pack) : status;
}

static int oxp__from_memory(void* user, uint64_t offset, void* into, size_t length) {
    memcpy(into, ((oxp_pack*)user)->memory + offset, length);
    return 0;
}

static oxp_status oxp__open(oxp_pack from, uint64_t size, uint64_t limit, oxp_pack** out) {
    oxp_pack* pack = (oxp_pack*)malloc(sizeof *pack);
    *out = NULL;
    if (!pack) return OXP_MEMORY;
    *pack = from;
    if (from.memory) pack->user = pack;
    oxp_status status = oxp__load(pack, size, limit);
    if (status == OXP_OK)
        *out = pack;
    else
        oxp_close(pack);
    return status;
}

oxp_status oxp_open(oxp_read_fn read, void* user, uint64_t size, uint64_t limit, oxp_pack* base,
                    oxp_pack** pack) {
    oxp_pack from;
    memset(&from, 0, sizeof from);
    from.read = read;
    from.user = user;
    from.base = base;
    return oxp__open(from, size, limit, pack);
}

oxp_status oxp_open_memory(const void* data, size_t size, uint64_t limit, oxp_pack* base,
                           oxp_pack** pack) {
    oxp_pack from;
    memset(&from, 0, sizeof from);
    from.read = oxp__from_memory;
    from.memory = (const uint8_t*)data;
    from.base = base;
    return oxp__open(from, size, limit, pack);
}

void oxp_close(oxp_pack* pack) {
    if (!pack) return;
    if (pack->zlib_ready) inflateEnd(&pack->zlib);
    free(pack->text);
    free(pack->scratch);
    free(pack->chunks);
    free(pack->entries);
    free(pack->parts);
    free(pack->numbers.at);
    free(pack);
}

const char* oxp_data_name(const oxp_pack* pack) { return pack->data_name; }
uint64_t oxp_data_length(const oxp_pack* pack) { return pack->data_length; }
const char* oxp_model(const oxp_pack* pack) { return pack->model; }
size_t oxp_count(const oxp_pack* pack) { return pack->entry_count; }
const oxp_tensor* oxp_get(const oxp_pack* pack, size_t index) {
    return index < pack->entry_count ? &pack->entries[index].seen : NULL;
}
#endif /* ONNXSHRINK_PACK_IMPLEMENTATION */
