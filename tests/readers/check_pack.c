/* What test_readers.py does with the C reader: see main. */
#define ONNXSHRINK_PACK_IMPLEMENTATION
#include "onnxshrink_pack.h"

#include <stdio.h>

#define LIMIT (UINT64_C(1) << 24)

static uint8_t* load(const char* path, size_t* size) {
    FILE* file = fopen(path, "rb");
    if (!file) exit(99);
    fseek(file, 0, SEEK_END);
    *size = (size_t)ftell(file);
    rewind(file);
    uint8_t* data = malloc(*size + !*size); /* exactly as long as the file: ASan watches its end */
    if (!data || fread(data, 1, *size, file) != *size) exit(99);
    fclose(file);
    return data;
}

/* Opens a pack and decodes all of it; prints what it holds if asked to. */
static oxp_status decode(const uint8_t* data, size_t size, oxp_pack* base, uint64_t limit,
                         int print) {
    oxp_pack* pack;
    oxp_status status = oxp_open_memory(data, size, limit, base, &pack);
    if (status != OXP_OK) return status;
    size_t length = (size_t)oxp_data_length(pack);
    uint8_t* whole = malloc(length + !length);
    if (!whole) exit(99);
    status = oxp_read_data(pack, whole, length);
    size_t graph_length = (size_t)oxp_graph_length(pack);
    uint8_t* graph = malloc(graph_length + !graph_length);
    if (!graph) exit(99);
    if (status == OXP_OK) status = oxp_read_graph(pack, graph, graph_length);
    char hex[65];
    for (size_t i = 0; print && status == OXP_OK && i < oxp_count(pack); i++) {
        const oxp_tensor* t = oxp_get(pack, i);
        uint8_t* one = malloc((size_t)t->nbytes + !t->nbytes);
        status = oxp_read_tensor(pack, i, one, (size_t)t->nbytes);
        if (memcmp(one, whole + t->offset, (size_t)t->nbytes)) exit(98);
        oxp_sha256(one, (size_t)t->nbytes, hex);
        printf("%s\t%s\t%llu\t%s\t[", hex, t->dtype, (unsigned long long)t->offset, t->name);
        for (uint32_t d = 0; d < t->rank; d++)
            printf("%s%llu", d ? ", " : "", (unsigned long long)t->shape[d]);
        puts("]");
        free(one);
    }
    if (print && status == OXP_OK) {
        oxp_sha256(whole, length, hex);
        printf("%s\t%s\t%s\t", hex, oxp_data_name(pack), oxp_model(pack) ? oxp_model(pack) : "-");
        oxp_sha256(graph, graph_length, hex);
        puts(graph_length ? hex : "-");
    }
    free(graph);
    free(whole);
    oxp_close(pack);
    return status;
}

static uint64_t state;
static uint32_t draw(uint32_t below) { /* xorshift64* */
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return (uint32_t)((state * UINT64_C(0x2545F4914F6CDD1D)) >> 32) % below;
}

/* A pack taken apart: what stands before the header's text, that text, and the chunks. */
typedef struct {
    const uint8_t* file;
    size_t size, text, stored, length, start;
} parts;

static parts take_apart(const uint8_t* data, size_t size) {
    if (!memcmp(data, "ONXSPAK1", 8)) {
        size_t length = (size_t)oxp__little(data + 16, 8);
        return (parts){data, size, 32, length, length, (size_t)oxp__align(32 + length, 64)};
    }
    const uint8_t* head = data + OXP__STUB;
    size_t stored = (size_t)oxp__little(head + 12, 4), text = OXP__STUB + OXP__HEAD;
    return (parts){data, size, text, stored, (size_t)oxp__little(head + 16, 4), text + stored};
}

static void little(uint8_t* at, uint64_t value) {
    for (int i = 0; i < 4; i++) at[i] = (uint8_t)(value >> (8 * i));
}

/* Changes a few bytes of the header or the chunks and makes the checksum right again; the result
 * has to be freed. */
static uint8_t* mutate(parts pack, size_t* size) {
    static const char* const pieces[] = {"0",
                                         "9",
                                         "-1",
                                         "99",
                                         "255",
                                         "256",
                                         "[",
                                         "]",
                                         "{",
                                         "}",
                                         ",",
                                         "\"",
                                         "\\u",
                                         "\\",
                                         "null",
                                         "true",
                                         "1e9",
                                         "262144",
                                         "2097152",
                                         "9007199254740991",
                                         "18446744073709551616",
                                         "joint",
                                         "runs",
                                         "mask"};
    size_t header = pack.length, rest = pack.size - pack.start;
    uLong bound = compressBound((uLong)header) + 64;
    uint8_t* text = malloc(header + 1);
    uint8_t* data = malloc(pack.start + bound + rest);
    z_stream z;
    memset(&z, 0, sizeof z);
    if (!text || !data || inflateInit2(&z, -15) != Z_OK) exit(99);
    int first = pack.text == 32;
    if (first)
        memcpy(text, pack.file + pack.text, header);
    else {
        z.next_in = (Bytef*)pack.file + pack.text;
        z.avail_in = (uInt)pack.stored;
        z.next_out = text;
        z.avail_out = (uInt)header;
        if (inflate(&z, Z_FINISH) != Z_STREAM_END) exit(99);
    }
    inflateEnd(&z);
    for (uint32_t n = 1 + draw(3); n--;) {
        size_t at = draw((uint32_t)header);
        const char* piece = pieces[draw(sizeof pieces / sizeof *pieces)];
        size_t length = strlen(piece);
        switch (draw(4)) {
            case 0: text[at] ^= (uint8_t)(1 << draw(8)); break;
            case 1: text[at] = (uint8_t)('0' + draw(10)); break;
            case 2: /* a digit where a digit was: mostly still JSON */
                for (size_t i = at; i < header; i++)
                    if (text[i] >= '0' && text[i] <= '9') {
                        text[i] = (uint8_t)('0' + draw(10));
                        break;
                    }
                break;
            default:
                if (at + length <= header) memcpy(text + at, piece, length);
        }
    }
    size_t start = pack.start, stored = header;
    memcpy(data, pack.file, pack.text);
    if (first) {
        memcpy(data, pack.file, start);
        memcpy(data + 32, text, header);
        little(data + 24, crc32(0, text, (uInt)header));
    } else {
        memset(&z, 0, sizeof z);
        if (deflateInit2(&z, 1, Z_DEFLATED, -15, 9, Z_DEFAULT_STRATEGY) != Z_OK) exit(99);
        z.next_in = text;
        z.avail_in = (uInt)header;
        z.next_out = data + pack.text;
        z.avail_out = (uInt)bound;
        if (deflate(&z, Z_FINISH) != Z_STREAM_END) exit(99);
        stored = (size_t)z.total_out;
        deflateEnd(&z);
        start = pack.text + stored;
        little(data + OXP__STUB + 12, stored);
        little(data + OXP__STUB + 20, crc32(0, data + pack.text, (uInt)stored));
        for (int i = 0; i < 5; i++)
            data[OXP__STUB - 5 + i] = (uint8_t)(
                ((uint64_t)(start + rest - OXP__STUB) >> (7 * i) & 127) | (i < 4 ? 128 : 0));
    }
    memcpy(data + start, pack.file + pack.start, rest);
    if (rest && !draw(4)) data[start + draw((uint32_t)rest)] ^= (uint8_t)(1 + draw(255));
    free(text);
    *size = start + rest;
    return data;
}

int main(int argc, char** argv) {
    if (argc < 3) return 97;
    size_t size, base_size;
    uint8_t* data = load(argv[2], &size);
    if (!strcmp(argv[1], "read")) { /* read PACK [BASE]: digests of all it holds */
        uint8_t* base_data = argc > 3 ? load(argv[3], &base_size) : NULL;
        oxp_pack* base = NULL;
        oxp_status status =
            base_data ? oxp_open_memory(base_data, base_size, LIMIT, NULL, &base) : OXP_OK;
        if (status == OXP_OK) status = decode(data, size, base, LIMIT, 1);
        oxp_close(base);
        free(base_data);
        free(data);
        return status;
    }
    if (!strcmp(argv[1], "refuse")) { /* refuse PACK...: the status of each, a line */
        free(data);
        for (int i = 2; i < argc; i++) {
            data = load(argv[i], &size);
            printf("%d\n", decode(data, size, NULL, LIMIT, 0));
            free(data);
        }
        return 0;
    }
    parts pack = take_apart(data, size);
    uint8_t* copy = malloc(size);
    if (!copy) return 99;
    memcpy(copy, data, size);
    unsigned long refused = 0, passed = 0;
    if (!strcmp(argv[1], "flips")) { /* flips PACK: every bit of head and header */
        for (size_t bit = 0; bit < 8 * (pack.text + pack.stored); bit++) {
            copy[bit / 8] ^= (uint8_t)(1 << bit % 8);
            if (decode(copy, size, NULL, LIMIT, 0) == OXP_OK)
                passed++;
            else
                refused++;
            copy[bit / 8] = data[bit / 8];
        }
    } else if (!strcmp(argv[1], "truncations")) { /* truncations PACK: every length */
        for (size_t length = 0; length < size; length++) {
            uint8_t* cut = malloc(length + !length);
            memcpy(cut, data, length);
            if (decode(cut, length, NULL, LIMIT, 0) == OXP_OK)
                passed++;
            else
                refused++;
            free(cut);
        }
    } else { /* fuzz PACK SEED COUNT */
        state = strtoull(argv[3], NULL, 10) * 2 + 1;
        for (unsigned long n = strtoul(argv[4], NULL, 10); n--;) {
            size_t length;
            uint8_t* changed = mutate(pack, &length);
            if (decode(changed, length, NULL, LIMIT, 0) == OXP_OK)
                passed++;
            else
                refused++;
            free(changed);
        }
    }
    printf("%lu refused, %lu passed\n", refused, passed);
    free(copy);
    free(data);
    return 0;
}
