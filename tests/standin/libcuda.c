// A stand-in for NVIDIA's driver library, for machines without a GPU: as much of it as Triton's launcher calls.
//
// It runs no kernel. It keeps two devices with their contexts, streams, memory and loaded modules, refuses what the
// driver would refuse (a wrong tensor map, a stream of another device, a cubin for another chip, too much shared
// memory), and writes every call as one line of JSON to the file that STANDIN_CALLS names. How many arguments a kernel
// has, and how long each is, it reads in the cubin, as the driver does. STANDIN_CAPABILITY ("9.0") is what the devices
// say they are, STANDIN_DRIVER (13000) the version of CUDA that the driver is for; with STANDIN_CAPTURE every stream is
// being captured.

#include "cuda.h"
#include <elf.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { DEVICES = 2, MAX_PARAMETERS = 256, MAX_RANGES = 1 << 16, STATIC_LIMIT = 48 << 10, OPTIN_LIMIT = 227 << 10 };

typedef struct CUctx_st { int device; } Context;
typedef struct CUstream_st { Context *context; } Stream;
typedef struct CUmod_st { Context *context; const char *elf; } Module;
typedef struct CUfunc_st {
  Context *context;
  char name[256];
  int count, size[MAX_PARAMETERS];  // the parameters and their bytes
  int threads;                      // per block, as the kernel was compiled for; 0: any
  int static_shared, dynamic_limit; // bytes
} Function;

static Context contexts[DEVICES] = {{0}, {1}};
static _Thread_local Context *current;
static int initialised;

// --- the record ------------------------------------------------------------------------------------------------------

static CUresult said(const char *call, CUresult result, const char *format, ...) {
  static pthread_mutex_t one = PTHREAD_MUTEX_INITIALIZER;
  static int file = -2;
  char line[1 << 15];
  int n = snprintf(line, sizeof line, "{\"call\": \"%s\", \"result\": %d", call, result);
  if (*format) n += snprintf(line + n, sizeof line - n, ", ");
  va_list values;
  va_start(values, format);
  n += vsnprintf(line + n, sizeof line - n, format, values);
  va_end(values);
  if (n + 3 > (int)sizeof line) abort();
  line[n++] = '}', line[n++] = '\n';
  pthread_mutex_lock(&one);
  const char *path = getenv("STANDIN_CALLS");
  if (file == -2) file = path ? open(path, O_WRONLY | O_APPEND | O_CREAT, 0600) : -1;
  if (file >= 0 && write(file, line, n) != n) abort();
  pthread_mutex_unlock(&one);
  return result;
}

#define NEEDS_INIT if (!initialised) return said(__func__, CUDA_ERROR_NOT_INITIALIZED, "")
#define NEEDS_CONTEXT NEEDS_INIT; if (!current) return said(__func__, CUDA_ERROR_INVALID_CONTEXT, "")

// For the stand-in array libraries: their own kernels and copies belong into the same record.
CUresult standin_note(const char *what) { return said(what, CUDA_SUCCESS, ""); }

CUresult cuGetErrorString(CUresult error, const char **text) {
  *text = error == CUDA_ERROR_INVALID_VALUE ? "invalid argument" : error == CUDA_ERROR_INVALID_HANDLE ?
    "invalid resource handle" : error == CUDA_ERROR_INVALID_CONTEXT ? "invalid device context" : "stand-in error";
  return CUDA_SUCCESS;
}

CUresult cuGetErrorName(CUresult error, const char **name) {
  *name = error == CUDA_ERROR_INVALID_DEVICE ? "CUDA_ERROR_INVALID_DEVICE" : "CUDA_ERROR";
  return CUDA_SUCCESS;
}

// --- devices and contexts --------------------------------------------------------------------------------------------

static void capability(int *major, int *minor) {
  const char *text = getenv("STANDIN_CAPABILITY");
  if (!text || sscanf(text, "%d.%d", major, minor) != 2) *major = 9, *minor = 0;
}

CUresult cuInit(unsigned flags) { initialised = 1; return said(__func__, CUDA_SUCCESS, ""); }
CUresult cuDriverGetVersion(int *version) {
  const char *text = getenv("STANDIN_DRIVER");
  *version = text ? atoi(text) : 13000;
  return CUDA_SUCCESS;
}
CUresult cuDeviceGetCount(int *count) { NEEDS_INIT; *count = DEVICES; return CUDA_SUCCESS; }

CUresult cuDeviceGet(CUdevice *device, int ordinal) {
  NEEDS_INIT;
  if (ordinal < 0 || ordinal >= DEVICES) return said(__func__, CUDA_ERROR_INVALID_DEVICE, "");
  *device = ordinal;
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
  NEEDS_INIT;
  int major, minor;
  capability(&major, &minor);
  switch ((int)attribute) {
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = major; break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = minor; break;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = 132; break;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE: *value = 32; break;
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK: *value = 65536; break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *value = OPTIN_LIMIT; break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR: *value = 228 << 10; break;
    default: *value = 1; // clocks and widths, which nothing here depends on
  }
  return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
  NEEDS_INIT;
  if (device < 0 || device >= DEVICES) return said(__func__, CUDA_ERROR_INVALID_DEVICE, "");
  *context = &contexts[device];
  return said(__func__, CUDA_SUCCESS, "\"device\": %d", device);
}

CUresult cuCtxGetCurrent(CUcontext *context) { NEEDS_INIT; *context = current; return CUDA_SUCCESS; }
CUresult cuCtxGetDevice(CUdevice *device) { NEEDS_CONTEXT; *device = current->device; return CUDA_SUCCESS; }

CUresult cuCtxSetCurrent(CUcontext context) {
  NEEDS_INIT;
  current = context;
  return said(__func__, CUDA_SUCCESS, "\"device\": %d", context ? context->device : -1);
}

CUresult cuCtxSetLimit(CUlimit limit, size_t value) { NEEDS_CONTEXT; return said(__func__, CUDA_SUCCESS, ""); }
CUresult cuCtxGetLimit(size_t *value, CUlimit limit) { NEEDS_CONTEXT; *value = 1 << 20; return CUDA_SUCCESS; }
CUresult cuCtxSynchronize(void) { NEEDS_CONTEXT; return said(__func__, CUDA_SUCCESS, ""); }

// --- streams ---------------------------------------------------------------------------------------------------------

CUresult cuStreamCreate(CUstream *stream, unsigned flags) {
  NEEDS_CONTEXT;
  *stream = malloc(sizeof **stream);
  (*stream)->context = current;
  return said(__func__, CUDA_SUCCESS, "\"stream\": %llu, \"device\": %d", (unsigned long long)*stream, current->device);
}

CUresult cuStreamSynchronize(CUstream stream) { NEEDS_CONTEXT; return said(__func__, CUDA_SUCCESS, ""); }

CUresult cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus *status) {
  NEEDS_INIT;
  *status = getenv("STANDIN_CAPTURE") ? CU_STREAM_CAPTURE_STATUS_ACTIVE : CU_STREAM_CAPTURE_STATUS_NONE;
  return CUDA_SUCCESS;
}

// --- events ----------------------------------------------------------------------------------------------------------

// Nothing takes time here but what says so: stand-ins for libraries with kernels of their own.
static double milliseconds;
typedef struct CUevent_st { double at; } Moment;

CUresult standin_spend(double time) { milliseconds += time; return CUDA_SUCCESS; }

CUresult cuEventCreate(CUevent *event, unsigned flags) {
  NEEDS_CONTEXT;
  *event = calloc(1, sizeof **event);
  return said(__func__, CUDA_SUCCESS, "");
}

CUresult cuEventRecord(CUevent event, CUstream stream) {
  NEEDS_CONTEXT;
  event->at = milliseconds;
  return said(__func__, CUDA_SUCCESS, "\"stream\": %llu", (unsigned long long)stream);
}

CUresult cuEventSynchronize(CUevent event) { NEEDS_CONTEXT; return said(__func__, CUDA_SUCCESS, ""); }

#undef cuEventElapsedTime // from CUDA 13 on the header calls another one
CUresult cuEventElapsedTime(float *time, CUevent start, CUevent end) {
  NEEDS_CONTEXT;
  *time = (float)(end->at - start->at);
  return CUDA_SUCCESS;
}

CUresult cuEventDestroy(CUevent event) { NEEDS_INIT; free(event); return said(__func__, CUDA_SUCCESS, ""); }

// --- memory ----------------------------------------------------------------------------------------------------------

static struct { CUdeviceptr start; size_t bytes; int device; } ranges[MAX_RANGES];
static int range_count;

// Memory of the CPU that stands for memory of a device. The newest claim to an address is the one that holds.
CUresult standin_adopt(CUdeviceptr start, size_t bytes, int device) {
  if (range_count == MAX_RANGES) abort();
  ranges[range_count].start = start, ranges[range_count].bytes = bytes, ranges[range_count].device = device;
  ++range_count;
  return CUDA_SUCCESS;
}

static int device_of(CUdeviceptr address) {
  for (int i = range_count; i--;)
    if (ranges[i].start <= address && address < ranges[i].start + ranges[i].bytes) return ranges[i].device;
  return -1;
}

CUresult cuMemAlloc(CUdeviceptr *address, size_t bytes) {
  NEEDS_CONTEXT;
  *address = (CUdeviceptr)aligned_alloc(512, (bytes + 511) / 512 * 512);
  standin_adopt(*address, bytes, current->device);
  return said(__func__, CUDA_SUCCESS, "\"address\": %llu, \"device\": %d", *address, current->device);
}

CUresult cuPointerGetAttribute(void *value, CUpointer_attribute attribute, CUdeviceptr address) {
  NEEDS_INIT;
  int device = device_of(address);
  int known = device >= 0 && attribute == CU_POINTER_ATTRIBUTE_DEVICE_POINTER;
  if (known) *(CUdeviceptr *)value = address;
  CUresult result = known ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
  return said(__func__, result, "\"address\": %llu, \"device\": %d", address, device);
}

// --- modules and functions -------------------------------------------------------------------------------------------

static const Elf64_Shdr *section(const char *elf, const char *name) {
  const Elf64_Ehdr *head = (const void *)elf;
  const Elf64_Shdr *all = (const void *)(elf + head->e_shoff);
  for (int i = 0; i < head->e_shnum; ++i)
    if (!strcmp(elf + all[head->e_shstrndx].sh_offset + all[i].sh_name, name)) return &all[i];
  return NULL;
}

CUresult cuModuleLoadData(CUmodule *module, const void *image) {
  NEEDS_CONTEXT;
  const Elf64_Ehdr *head = image;
  if (memcmp(image, ELFMAG, SELFMAG) || head->e_machine != 190) return said(__func__, CUDA_ERROR_INVALID_IMAGE, "");
  int major, minor, arch = (head->e_ident[EI_ABIVERSION] < 8 ? head->e_flags : head->e_flags >> 8) & 0xff;
  capability(&major, &minor);
  if (arch / 10 != major || arch % 10 > minor)
    return said(__func__, CUDA_ERROR_NO_BINARY_FOR_GPU, "\"arch\": %d", arch);
  *module = malloc(sizeof **module);
  (*module)->context = current;
  // The caller may free the image, so that it is copied up to whatever is last in it.
  size_t bytes = head->e_shoff + head->e_shnum * sizeof(Elf64_Shdr);
  const Elf64_Shdr *all = (const void *)((const char *)image + head->e_shoff);
  for (int i = 0; i < head->e_shnum; ++i) {
    size_t end = all[i].sh_type == SHT_NOBITS ? 0 : all[i].sh_offset + all[i].sh_size;
    if (bytes < end) bytes = end;
  }
  (*module)->elf = memcpy(malloc(bytes), image, bytes);
  return said(__func__, CUDA_SUCCESS, "\"arch\": %d, \"device\": %d", arch, current->device);
}

CUresult cuModuleUnload(CUmodule module) { NEEDS_INIT; return said(__func__, CUDA_SUCCESS, ""); }

CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
  NEEDS_CONTEXT;
  char label[300];
  snprintf(label, sizeof label, ".nv.info.%s", name);
  const Elf64_Shdr *info = section(module->elf, label);
  if (!info) return said(__func__, CUDA_ERROR_NOT_FOUND, "");
  Function *f = calloc(1, sizeof *f);
  f->context = module->context, f->dynamic_limit = STATIC_LIMIT;
  snprintf(f->name, sizeof f->name, "%s", name);
  snprintf(label, sizeof label, ".nv.shared.%s", name);
  const Elf64_Shdr *shared = section(module->elf, label);
  f->static_shared = shared ? (int)shared->sh_size : 0;
  // Entries of a format, an attribute and two bytes; format 4 says in them how many bytes follow.
  const unsigned char *at = (const void *)(module->elf + info->sh_offset), *end = at + info->sh_size;
  while (at < end) {
    unsigned length = at[0] == 4 ? at[2] | at[3] << 8 : 0, word[3] = {0};
    memcpy(word, at + 4, length < sizeof word ? length : sizeof word);
    if (at[0] == 4 && at[1] == 0x17) { // EIATTR_KPARAM_INFO: index; ordinal and offset; the size above flags
      unsigned ordinal = word[1] & 0xffff;
      if (ordinal >= MAX_PARAMETERS) abort();
      f->size[ordinal] = word[2] >> 18;
      if (f->count <= (int)ordinal) f->count = ordinal + 1;
    }
    if (at[0] == 4 && at[1] == 0x10) f->threads = word[0] * word[1] * word[2]; // EIATTR_REQNTID
    at += 4 + length;
  }
  *function = f;
  return said(__func__, CUDA_SUCCESS, "\"function\": %llu, \"kernel\": \"%s\"", (unsigned long long)f, name);
}

CUresult cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction f) {
  NEEDS_INIT;
  *value = attribute == CU_FUNC_ATTRIBUTE_NUM_REGS ? 32 : attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 :
    attribute == CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES ? f->static_shared : 0;
  return CUDA_SUCCESS;
}

CUresult cuFuncSetAttribute(CUfunction f, CUfunction_attribute attribute, int value) {
  NEEDS_INIT;
  CUresult result = CUDA_SUCCESS;
  if (attribute == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES && value + f->static_shared <= OPTIN_LIMIT)
    f->dynamic_limit = value;
  else if (attribute != CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED)
    result = CUDA_ERROR_INVALID_VALUE;
  return said(__func__, result, "\"attribute\": %d, \"value\": %d", attribute, value);
}

CUresult cuFuncSetCacheConfig(CUfunction f, CUfunc_cache config) { NEEDS_INIT; return CUDA_SUCCESS; }

// --- tensor maps -----------------------------------------------------------------------------------------------------

static void list(char *into, size_t room, const void *values, int count, int width) {
  int n = snprintf(into, room, "[");
  for (int i = 0; i < count; ++i) {
    cuuint64_t value = width == 8 ? ((const cuuint64_t *)values)[i] : ((const cuuint32_t *)values)[i];
    n += snprintf(into + n, room - n, "%s%llu", i ? ", " : "", (unsigned long long)value);
  }
  snprintf(into + n, room - n, "]");
}

// The requirements are those that cuda.h lists above the function. It also shows strides as sums of sizes and padding;
// the driver takes others (rows that overlap, dimensions in another order), and libraries rely on it.
CUresult cuTensorMapEncodeTiled(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank, void *address,
    const cuuint64_t *dim, const cuuint64_t *stride, const cuuint32_t *box, const cuuint32_t *step,
    CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle, CUtensorMapL2promotion l2,
    CUtensorMapFloatOOBfill fill) {
  static const int bytes[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4}, span[] = {0, 32, 64, 128};
  static cuuint64_t serial;
  const char *wrong = NULL;
  if (type > CU_TENSOR_MAP_DATA_TYPE_TFLOAT32_FTZ || rank < 1 || rank > 5 ||
      interleave != CU_TENSOR_MAP_INTERLEAVE_NONE || swizzle > CU_TENSOR_MAP_SWIZZLE_128B)
    return said(__func__, CUDA_ERROR_INVALID_VALUE, "\"wrong\": \"type, rank, interleave or swizzle\"");
  if ((size_t)map % 64) wrong = "the map's own alignment";
  if ((size_t)address % 16) wrong = "address";
  for (cuuint32_t i = 0; i < rank; ++i) {
    if (dim[i] < 1 || dim[i] > 1ull << 32) wrong = "size";
    if (i + 1 < rank && (stride[i] % 16 || stride[i] >= 1ull << 40)) wrong = "stride";
    if (box[i] < 1 || box[i] > 256) wrong = "box";
    if (step[i] < 1 || step[i] > 8) wrong = "element stride";
  }
  if (box[0] * bytes[type] % 16) wrong = "inner bytes of the box";
  if (swizzle && (int)(box[0] * bytes[type]) > span[swizzle]) wrong = "inner bytes of the box against the swizzle";
  cuuint64_t id = wrong ? 0 : __atomic_add_fetch(&serial, 1, __ATOMIC_RELAXED);
  memset(map, 0, sizeof *map);
  map->opaque[8] = id; // tells which map a kernel was given
  char dims[128], strides[128], boxes[128];
  list(dims, sizeof dims, dim, rank, 8), list(strides, sizeof strides, stride, rank - 1, 8);
  list(boxes, sizeof boxes, box, rank, 4);
  return said(__func__, wrong ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS,
    "\"map\": %llu, \"wrong\": \"%s\", \"type\": %d, \"address\": %llu, \"dims\": %s, \"strides\": %s, \"box\": %s, "
    "\"swizzle\": %d, \"fill\": %d",
    (unsigned long long)id, wrong ? wrong : "", type, (unsigned long long)address, dims, strides, boxes, swizzle, fill);
}

// --- the launch ------------------------------------------------------------------------------------------------------

CUresult cuLaunchKernelEx(const CUlaunchConfig *c, CUfunction f, void **arguments, void **extra) {
  NEEDS_CONTEXT;
  const char *wrong = NULL;
  CUresult result = CUDA_ERROR_INVALID_VALUE;
  if (!c->gridDimX || c->gridDimX > 0x7fffffff || !c->gridDimY || c->gridDimY > 65535 || !c->gridDimZ ||
      c->gridDimZ > 65535)
    wrong = "grid";
  unsigned threads = c->blockDimX * c->blockDimY * c->blockDimZ;
  if (!threads || threads > 1024 || (f->threads && threads != (unsigned)f->threads)) wrong = "block";
  if ((int)c->sharedMemBytes > f->dynamic_limit) wrong = "shared memory";
  Context *where = c->hStream ? c->hStream->context : current;
  if (where != f->context)
    wrong = "the stream is of another device than the kernel", result = CUDA_ERROR_INVALID_HANDLE;
  char hex[1 << 14] = "";
  int n = 0;
  for (int i = 0; i < f->count; ++i) {
    n += snprintf(hex + n, sizeof hex - n, "%s\"", i ? ", " : "");
    const unsigned char *bytes = arguments[i];
    for (int j = 0; j < f->size[i]; ++j) n += snprintf(hex + n, sizeof hex - n, "%02x", bytes[j]);
    n += snprintf(hex + n, sizeof hex - n, "\"");
  }
  if (n >= (int)sizeof hex) abort();
  return said(__func__, wrong ? result : CUDA_SUCCESS,
    "\"wrong\": \"%s\", \"kernel\": \"%s\", \"function\": %llu, \"grid\": [%u, %u, %u], \"block\": [%u, %u, %u], "
    "\"shared\": %u, \"stream\": %llu, \"device\": %d, \"current\": %d, \"arguments\": [%s]",
    wrong ? wrong : "", f->name, (unsigned long long)f, c->gridDimX, c->gridDimY, c->gridDimZ, c->blockDimX,
    c->blockDimY, c->blockDimZ, c->sharedMemBytes, (unsigned long long)c->hStream, f->context->device,
    current->device, hex);
}
