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
        printf("%s\t%s\t%s\n", hex, oxp_data_name(pack), oxp_model(pack) ? oxp_model(pack) : "-");
    }
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

/* Changes a few bytes of the header or the chunks and makes the checksum right again. */
static void mutate(uint8_t* data, size_t size, size_t header) {
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
    for (uint32_t n = 1 + draw(3); n--;) {
        size_t at = 32 + draw((uint32_t)header);
        const char* piece = pieces[draw(sizeof pieces / sizeof *pieces)];
        size_t length = strlen(piece);
        switch (draw(5)) {
            case 0: data[at] ^= (uint8_t)(1 << draw(8)); break;
            case 1: data[at] = (uint8_t)('0' + draw(10)); break;
            case 2: /* a digit where a digit was: mostly still JSON */
                for (size_t i = at; i < 32 + header; i++)
                    if (data[i] >= '0' && data[i] <= '9') {
                        data[i] = (uint8_t)('0' + draw(10));
                        break;
                    }
                break;
            case 3:
                if (at + length <= 32 + header) memcpy(data + at, piece, length);
                break;
            default:
                if (size > 32 + header)
                    data[32 + header + draw((uint32_t)(size - 32 - header))] ^=
                        (uint8_t)(1 + draw(255));
        }
    }
    uint32_t crc = (uint32_t)crc32(0, data + 32, (uInt)header);
    for (int i = 0; i < 4; i++) data[24 + i] = (uint8_t)(crc >> (8 * i));
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
    size_t header = (size_t)oxp__little(data + 16, 8);
    uint8_t* copy = malloc(size);
    if (!copy) return 99;
    memcpy(copy, data, size);
    unsigned long refused = 0, passed = 0;
    if (!strcmp(argv[1], "flips")) { /* flips PACK: every bit of head and header */
        for (size_t bit = 0; bit < 8 * (32 + header); bit++) {
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
            mutate(copy, size, header);
            if (decode(copy, size, NULL, LIMIT, 0) == OXP_OK)
                passed++;
            else
                refused++;
            memcpy(copy, data, size);
        }
    }
    printf("%lu refused, %lu passed\n", refused, passed);
    free(copy);
    free(data);
    return 0;
}
