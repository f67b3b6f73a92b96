/* Runs the model on the sample input with ONNX Runtime's C API, and holds the answer against the
 * one in sample/. Build: see README.md. Run in this folder: ./run
 *
 * sample/index.txt has a line for each array: INPUT|OUTPUT NAME TYPE FILE RANK DIMS... where TYPE is
 * the number of ONNXTensorElementDataType. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "onnxruntime_c_api.h"

#define MODEL "@@MODEL@@"
#define MOST 64

typedef struct {
  char name[512], file[512];
  int type, rank;
  int64_t dims[16];
  void* data;
  size_t bytes;
} Array;

static const OrtApi* api;

static void check(OrtStatus* status) {
  if (!status) return;
  fprintf(stderr, "error: %s\n", api->GetErrorMessage(status));
  exit(1);
}

static void* read_file(const char* name, size_t* size) {
  char path[600];
  snprintf(path, sizeof path, "sample/%s", name);
  FILE* file = fopen(path, "rb");
  if (!file) { perror(path); exit(1); }
  fseek(file, 0, SEEK_END);
  *size = (size_t)ftell(file);
  rewind(file);
  void* data = malloc(*size ? *size : 1);
  if (!data || fread(data, 1, *size, file) != *size) { perror(path); exit(1); }
  fclose(file);
  return data;
}

static int read_index(Array* inputs, Array* outputs, int* outputs_count) {
  FILE* file = fopen("sample/index.txt", "r");
  char kind[8];
  int count = 0;
  *outputs_count = 0;
  if (!file) { perror("sample/index.txt"); exit(1); }
  while (count < MOST && *outputs_count < MOST && fscanf(file, "%7s", kind) == 1) {
    Array* array = strcmp(kind, "INPUT") ? &outputs[(*outputs_count)++] : &inputs[count++];
    if (fscanf(file, "%511s %d %511s %d", array->name, &array->type, array->file, &array->rank) != 4) exit(1);
    for (int axis = 0; axis < array->rank && axis < 16; axis++) {
      long long size;
      if (fscanf(file, "%lld", &size) != 1) exit(1);
      array->dims[axis] = size;
    }
    array->data = read_file(array->file, &array->bytes);
  }
  fclose(file);
  return count;
}

int main(void) {
  static Array inputs[MOST], outputs[MOST];
  int outputs_count, count = read_index(inputs, outputs, &outputs_count);
  api = OrtGetApiBase()->GetApi(ORT_API_VERSION);
  if (!api) { fprintf(stderr, "error: the library is older than its header\n"); return 1; }

  OrtEnv* env;
  OrtSessionOptions* options;
  OrtSession* session;
  OrtMemoryInfo* memory;
  check(api->CreateEnv(ORT_LOGGING_LEVEL_WARNING, "bundle", &env));
  check(api->CreateSessionOptions(&options));
  check(api->CreateSession(env, MODEL, options, &session));
  check(api->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory));

  OrtValue *feeds[MOST], *answers[MOST] = {0};
  const char *feed_names[MOST], *answer_names[MOST];
  for (int i = 0; i < count; i++) {
    Array* in = &inputs[i];
    feed_names[i] = in->name;
    check(api->CreateTensorWithDataAsOrtValue(memory, in->data, in->bytes, in->dims, (size_t)in->rank,
                                              (ONNXTensorElementDataType)in->type, &feeds[i]));
  }
  for (int i = 0; i < outputs_count; i++) answer_names[i] = outputs[i].name;
  check(api->Run(session, NULL, feed_names, (const OrtValue* const*)feeds, (size_t)count, answer_names,
                 (size_t)outputs_count, answers));

  for (int i = 0; i < outputs_count; i++) {
    void* data;
    check(api->GetTensorMutableData(answers[i], &data));
    printf("%s:", outputs[i].name);
    if (outputs[i].type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) {
      const float *mine = (const float *)data, *known = (const float *)outputs[i].data;
      double apart = 0, size = 1e-30;
      for (size_t k = 0; k < outputs[i].bytes / sizeof(float); k++) {
        if (k < 8) printf(" %.4g", mine[k]);
        apart = fmax(apart, fabs((double)mine[k] - known[k]));
        size = fmax(size, fabs((double)known[k]));
      }
      printf("\n  differs from the answer in sample/ by %.1e (relative)\n", apart / size);
    } else {
      printf(" %s\n", memcmp(data, outputs[i].data, outputs[i].bytes) ? "differs" : "equal");
    }
    api->ReleaseValue(answers[i]);
  }
  for (int i = 0; i < count; i++) api->ReleaseValue(feeds[i]);
  api->ReleaseMemoryInfo(memory);
  api->ReleaseSession(session);
  api->ReleaseSessionOptions(options);
  api->ReleaseEnv(env);
  return 0;
}
