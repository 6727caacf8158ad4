// A stand-in for NVIDIA's cuBLASLt, for machines without a GPU: as much of it as csrc/cuda/cublaslt.cpp calls.
//
// It computes, naively and in double, what cublasLt.h says a product with an epilogue is, on column-major matrices in
// memory of the CPU; and it refuses what the header says is not taken. STANDIN_CUBLASLT makes it worse than it is:
// "old" is a version from before 12.1, "refuses" has no kernel for anything, "fails" launches none.

#define _GNU_SOURCE
#include <cublasLt.h>
#include <dlfcn.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CANDIDATES = 4, MAGIC = 0x5eed };

struct cublasLtContext { int device; };
typedef struct {
  cublasComputeType_t compute;
  cudaDataType_t scale;
  int32_t transpose_a, transpose_b;
  uint32_t epilogue;
  void *bias, *aux;
  int64_t aux_ld;
} Desc;
typedef struct { cudaDataType_t type; uint64_t rows, columns; int64_t ld; } Matrix;
typedef struct { uint64_t workspace; uint32_t alignment[4], reduction; } Preference;
typedef struct { uint64_t magic, index, alignment[4], workspace, epilogue; } Algorithm; // in a cublasLtMatmulAlgo_t

typedef struct { uint32_t epilogue; int tf32, device; cudaStream_t stream; } Product;

enum { KEPT = 4096 };
static Product record[KEPT]; // the last so many products that were launched
static int heuristics, last = -1, alive, products;
int standin_heuristics(void) { return heuristics; } // how often they were asked
int standin_last(void) { return last; }             // which candidate was launched last
int standin_alive(void) { return alive; }           // descriptors that nobody has destroyed
int standin_products(void) { return products; }     // how many were launched
Product standin_product(int i) { return record[i % KEPT]; }

static int is(const char *way) {
  const char *asked = getenv("STANDIN_CUBLASLT");
  return asked && !strcmp(asked, way);
}

static void *of_driver(const char *name) { return dlsym(dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD), name); }

static int current_device(void) {
  int device = -1;
  ((int (*)(int *))of_driver("cuCtxGetDevice"))(&device);
  return device;
}

size_t cublasLtGetVersion(void) { return is("old") ? 120003 : 130002; }
size_t cublasLtGetCudartVersion(void) { return 13000; }

const char *cublasLtGetStatusName(cublasStatus_t status) {
  switch (status) {
    case CUBLAS_STATUS_SUCCESS: return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_INVALID_VALUE: return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_EXECUTION_FAILED: return "CUBLAS_STATUS_EXECUTION_FAILED";
    case CUBLAS_STATUS_NOT_SUPPORTED: return "CUBLAS_STATUS_NOT_SUPPORTED";
    default: return "another status";
  }
}

static cublasStatus_t refused(const char *why) {
  fprintf(stderr, "stand-in cuBLASLt: %s\n", why);
  return CUBLAS_STATUS_INVALID_VALUE;
}

cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle) {
  *handle = malloc(sizeof **handle);
  (*handle)->device = current_device();
  return (*handle)->device < 0 ? CUBLAS_STATUS_NOT_INITIALIZED : CUBLAS_STATUS_SUCCESS;
}

// --- descriptors -----------------------------------------------------------------------------------------------------

static void *made(size_t bytes, const void *value) { ++alive; return memcpy(malloc(bytes), value, bytes); }
static cublasStatus_t destroyed(void *object) { --alive; free(object); return CUBLAS_STATUS_SUCCESS; }

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *desc, cublasComputeType_t compute, cudaDataType_t scale) {
  Desc value = {compute, scale, CUBLAS_OP_N, CUBLAS_OP_N, CUBLASLT_EPILOGUE_DEFAULT, NULL, NULL, 0};
  *desc = made(sizeof value, &value);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc) { return destroyed(desc); }

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t attribute,
    const void *value, size_t bytes) {
  Desc *d = (Desc *)desc;
  void *into;
  size_t size = 4;
  switch (attribute) {
    case CUBLASLT_MATMUL_DESC_TRANSA: into = &d->transpose_a; break;
    case CUBLASLT_MATMUL_DESC_TRANSB: into = &d->transpose_b; break;
    case CUBLASLT_MATMUL_DESC_EPILOGUE: into = &d->epilogue; break;
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER: into = &d->bias, size = 8; break;
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER: into = &d->aux, size = 8; break;
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD: into = &d->aux_ld, size = 8; break;
    default: return refused("an attribute of the operation that it does not know");
  }
  if (bytes != size) return refused("the size of an attribute of the operation");
  memcpy(into, value, size);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *layout, cudaDataType_t type, uint64_t rows,
    uint64_t columns, int64_t ld) {
  Matrix value = {type, rows, columns, ld};
  *layout = made(sizeof value, &value);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) { return destroyed(layout); }

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *preference) {
  Preference value = {0, {256, 256, 256, 256}, CUBLASLT_REDUCTION_SCHEME_MASK};
  *preference = made(sizeof value, &value);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) { return destroyed(preference); }

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
    cublasLtMatmulPreferenceAttributes_t attribute, const void *value, size_t bytes) {
  Preference *p = (Preference *)preference;
  int matrix = (int)attribute - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES;
  if (attribute == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES && bytes == 8)
    memcpy(&p->workspace, value, 8);
  else if (attribute == CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK && bytes == 4)
    memcpy(&p->reduction, value, 4);
  else if (matrix >= 0 && matrix < 4 && bytes == 4)
    memcpy(&p->alignment[matrix], value, 4);
  else
    return refused("an attribute of the preference, or its size");
  return CUBLAS_STATUS_SUCCESS;
}

// --- what is taken ---------------------------------------------------------------------------------------------------

static int is_relu(uint32_t epilogue) { return epilogue & CUBLASLT_EPILOGUE_RELU; }
static int is_gelu(uint32_t epilogue) { return epilogue & CUBLASLT_EPILOGUE_GELU; }
static int is_drelu(uint32_t e) { return e == CUBLASLT_EPILOGUE_DRELU || e == CUBLASLT_EPILOGUE_DRELU_BGRAD; }
static int is_dgelu(uint32_t e) { return e == CUBLASLT_EPILOGUE_DGELU || e == CUBLASLT_EPILOGUE_DGELU_BGRAD; }
static int adds_bias(uint32_t epilogue) { return epilogue & CUBLASLT_EPILOGUE_BIAS; }
static int sums_columns(uint32_t epilogue) { return epilogue & 16; }
static int has_aux(uint32_t epilogue) { return epilogue & 128; }
static int has_bias(uint32_t e) {
  return adds_bias(e) || sums_columns(e) || e == CUBLASLT_EPILOGUE_BGRADA || e == CUBLASLT_EPILOGUE_BGRADB;
}

static uint64_t size_of(cudaDataType_t type) { return type == CUDA_R_64F ? 8 : type == CUDA_R_32F ? 4 : 2; }

static const char *wrong(const Desc *o, const Matrix *a, const Matrix *b, const Matrix *c, const Matrix *d) {
  uint64_t m = d->rows, n = d->columns, k = o->transpose_a == CUBLAS_OP_N ? a->columns : a->rows;
  if ((o->transpose_a == CUBLAS_OP_N ? a->rows : a->columns) != m) return "A does not fit D";
  if ((o->transpose_b == CUBLAS_OP_N ? b->columns : b->rows) != n) return "B does not fit D";
  if ((o->transpose_b == CUBLAS_OP_N ? b->rows : b->columns) != k) return "A does not fit B";
  if (c->rows != m || c->columns != n || c->type != d->type) return "C does not fit D";
  const Matrix *all[] = {a, b, c, d};
  for (int i = 0; i < 4; ++i)
    if (!all[i]->rows || !all[i]->columns || all[i]->ld < (int64_t)all[i]->rows) return "a leading dimension";
  int narrow = a->type == CUDA_R_16F || a->type == CUDA_R_16BF, wide = a->type == CUDA_R_64F;
  if (a->type != b->type || !(narrow || wide || a->type == CUDA_R_32F)) return "the types of A and B";
  if (d->type != a->type && !(narrow && d->type == CUDA_R_32F)) return "the type of D";
  if (o->scale != (wide ? CUDA_R_64F : CUDA_R_32F)) return "the type of the scale";
  if (o->compute == CUBLAS_COMPUTE_32F_FAST_TF32 ? a->type != CUDA_R_32F :
      o->compute != (wide ? CUBLAS_COMPUTE_64F : CUBLAS_COMPUTE_32F)) return "the type of the computation";
  if (has_bias(o->epilogue) && (!o->bias || (size_t)o->bias % size_of(d->type))) return "the bias";
  if (has_aux(o->epilogue)) {
    int multiple = is_relu(o->epilogue) || is_drelu(o->epilogue) ? 128 : 8;
    if (!o->aux || (size_t)o->aux % 16 || o->aux_ld < (int64_t)m || o->aux_ld % multiple) return "the auxiliary matrix";
    if (wide) return "an auxiliary matrix in double";
  }
  return NULL;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t operation,
    cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
    cublasLtMatmulPreference_t preference, int room, cublasLtMatmulHeuristicResult_t *results, int *count) {
  const Desc *o = (Desc *)operation;
  const Preference *p = (Preference *)preference;
  ++heuristics, *count = 0;
  const char *why = wrong(o, (Matrix *)a, (Matrix *)b, (Matrix *)c, (Matrix *)d);
  if (why) return refused(why);
  if (handle->device != current_device()) return refused("a handle of another device");
  cudaDataType_t out = ((Matrix *)d)->type;
  if ((out == CUDA_R_16F || out == CUDA_R_16BF) && p->reduction != CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE)
    return refused("sums that are rounded on the way"); // which the library allows, and we do not
  if (is("refuses")) return CUBLAS_STATUS_NOT_SUPPORTED;
  // The second candidate can never be launched, the last one wants a workspace of a megabyte.
  for (uint64_t i = 0; i < CANDIDATES && *count < room; ++i) {
    uint64_t workspace = i + 1 == CANDIDATES ? 1 << 20 : 0;
    if (workspace > p->workspace) continue;
    Algorithm algorithm = {MAGIC, i, {0}, workspace, o->epilogue};
    for (int j = 0; j < 4; ++j) algorithm.alignment[j] = p->alignment[j];
    cublasLtMatmulHeuristicResult_t *result = &results[(*count)++];
    memset(result, 0, sizeof *result);
    memcpy(&result->algo, &algorithm, sizeof algorithm);
    result->workspaceSize = workspace;
    result->state = i == 2 ? CUBLAS_STATUS_NOT_SUPPORTED : CUBLAS_STATUS_SUCCESS;
  }
  return CUBLAS_STATUS_SUCCESS;
}

// --- the product -----------------------------------------------------------------------------------------------------

static double get(const void *from, cudaDataType_t type, uint64_t i) {
  if (type == CUDA_R_64F) return ((const double *)from)[i];
  if (type == CUDA_R_32F) return ((const float *)from)[i];
  if (type == CUDA_R_16F) return (double)((const _Float16 *)from)[i];
  uint32_t bits = (uint32_t)((const uint16_t *)from)[i] << 16;
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

static void put(void *to, cudaDataType_t type, uint64_t i, double value) {
  float narrow = (float)value;
  uint32_t bits;
  memcpy(&bits, &narrow, 4);
  if (type == CUDA_R_64F) ((double *)to)[i] = value;
  else if (type == CUDA_R_32F) ((float *)to)[i] = narrow;
  else if (type == CUDA_R_16F) ((_Float16 *)to)[i] = (_Float16)value;
  else ((uint16_t *)to)[i] = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16); // to nearest, ties to even
}

static double element(const void *from, const Matrix *m, int transpose, uint64_t row, uint64_t column) {
  return get(from, m->type, transpose == CUBLAS_OP_N ? row + column * m->ld : column + row * m->ld);
}

#define GELU_ARGUMENT(x) (0.7978845608028654 * ((x) + 0.044715 * (x) * (x) * (x))) // sqrt(2 / pi)

static double gelu(double x) { return 0.5 * x * (1 + tanh(GELU_ARGUMENT(x))); }

static double gelu_slope(double x) {
  double t = tanh(GELU_ARGUMENT(x));
  return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * 0.7978845608028654 * (1 + 3 * 0.044715 * x * x);
}

// One element of D from its sum: what is added, applied, stored aside and multiplied.
static double epilogue(const Desc *o, cudaDataType_t type, double z, uint64_t row, uint64_t column) {
  uint32_t e = o->epilogue;
  if (adds_bias(e)) z += get(o->bias, type, row);
  uint64_t at = row + column * o->aux_ld;
  unsigned char *mask = (unsigned char *)o->aux + at / 8, bit = (unsigned char)(1 << at % 8);
  if (is_drelu(e)) return *mask & bit ? z : 0;
  if (is_dgelu(e)) return z * gelu_slope(get(o->aux, type, at));
  if (has_aux(e) && is_relu(e)) *mask = z > 0 ? *mask | bit : *mask & ~bit;
  if (has_aux(e) && is_gelu(e)) put(o->aux, type, at, z);
  return is_relu(e) ? fmax(z, 0) : is_gelu(e) ? gelu(z) : z;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t operation, const void *alpha, const void *a,
    cublasLtMatrixLayout_t a_layout, const void *b, cublasLtMatrixLayout_t b_layout, const void *beta, const void *c,
    cublasLtMatrixLayout_t c_layout, void *d, cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t *chosen,
    void *workspace, size_t workspace_bytes, cudaStream_t stream) {
  const Desc *o = (Desc *)operation;
  const Matrix *ma = (Matrix *)a_layout, *mb = (Matrix *)b_layout, *mc = (Matrix *)c_layout, *md = (Matrix *)d_layout;
  Algorithm algorithm;
  memcpy(&algorithm, chosen, sizeof algorithm);
  const char *why = wrong(o, ma, mb, mc, md);
  if (why) return refused(why);
  if (handle->device != current_device()) return refused("a handle of another device");
  if (algorithm.magic != MAGIC || algorithm.epilogue != o->epilogue) return refused("an algorithm for something else");
  if (algorithm.workspace > workspace_bytes || (workspace_bytes && !workspace)) return refused("the workspace");
  const void *pointers[] = {a, b, c, d};
  for (int i = 0; i < 4; ++i)
    if (!pointers[i] || (size_t)pointers[i] % algorithm.alignment[i]) return refused("an alignment that was promised");
  if (is("fails") || algorithm.index == 1) return CUBLAS_STATUS_EXECUTION_FAILED;
  static const double milliseconds[CANDIDATES] = {3, 0.5, 1, 2};
  ((int (*)(double))of_driver("standin_spend"))(milliseconds[algorithm.index]);
  last = (int)algorithm.index;
  int tf32 = o->compute == CUBLAS_COMPUTE_32F_FAST_TF32;
  record[products++ % KEPT] = (Product){o->epilogue, tf32, handle->device, stream};
  memset(workspace, 0xee, algorithm.workspace); // it may write all of it

  uint64_t m = md->rows, n = md->columns, k = o->transpose_a == CUBLAS_OP_N ? ma->columns : ma->rows;
  double scale = get(alpha, o->scale, 0), add = get(beta, o->scale, 0);
  double *sums = calloc(m, sizeof *sums);
  for (uint64_t row = 0; row < m; ++row)
    for (uint64_t column = 0; column < n; ++column) {
      double z = 0;
      for (uint64_t i = 0; i < k; ++i)
        z += element(a, ma, o->transpose_a, row, i) * element(b, mb, o->transpose_b, i, column);
      z = scale * z + (add ? add * get(c, mc->type, row + column * mc->ld) : 0);
      z = epilogue(o, md->type, z, row, column);
      sums[row] += z;
      put(d, md->type, row + column * md->ld, z);
    }
  for (uint64_t row = 0; row < m && sums_columns(o->epilogue); ++row) put(o->bias, md->type, row, sums[row]);
  for (uint64_t row = 0; row < m && o->epilogue == CUBLASLT_EPILOGUE_BGRADA; ++row) {
    double sum = 0;
    for (uint64_t i = 0; i < k; ++i) sum += element(a, ma, o->transpose_a, row, i);
    put(o->bias, md->type, row, sum);
  }
  for (uint64_t column = 0; column < n && o->epilogue == CUBLASLT_EPILOGUE_BGRADB; ++column) {
    double sum = 0;
    for (uint64_t i = 0; i < k; ++i) sum += element(b, mb, o->transpose_b, i, column);
    put(o->bias, md->type, column, sum);
  }
  free(sums);
  return CUBLAS_STATUS_SUCCESS;
}
