/* build-kernels OPTIONS FILE.cl...: builds each file for the first OpenCL device. The driver prints
   the machine code and its statistics; this program prints where each file's begin and end:

     FILE name.cl
     PRIVATE bytes      private memory of the file's kernel
     DONE, or FAILED and the compiler's log */
#define CL_TARGET_OPENCL_VERSION 300
#include <CL/cl.h>
#include <stdio.h>
#include <stdlib.h>

static char *read_file(const char *path)
{
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END)) {
        perror(path);
        exit(1);
    }
    const long length = ftell(file);
    rewind(file);
    char *text = calloc(length + 1, 1);
    if (fread(text, 1, length, file) != (size_t)length) {
        perror(path);
        exit(1);
    }
    fclose(file);
    return text;
}

static void print_log(cl_program program, cl_device_id device)
{
    size_t length = 0;
    clGetProgramBuildInfo(program, device, CL_PROGRAM_BUILD_LOG, 0, NULL, &length);
    char *log = calloc(length + 1, 1);
    clGetProgramBuildInfo(program, device, CL_PROGRAM_BUILD_LOG, length, log, NULL);
    fprintf(stderr, "FAILED\n%s\n", log);
    free(log);
}

static void build(cl_context context, cl_device_id device, const char *options, const char *path)
{
    cl_int error;
    const char *source = read_file(path);
    fprintf(stderr, "FILE %s\n", path);
    cl_program program = clCreateProgramWithSource(context, 1, &source, NULL, &error);
    if (error || clBuildProgram(program, 1, &device, options, NULL, NULL)) {
        print_log(program, device);
        return;
    }
    cl_kernel kernel;
    cl_ulong private_bytes = 0;
    if (clCreateKernelsInProgram(program, 1, &kernel, NULL)) {
        fprintf(stderr, "FAILED\nit has not one kernel\n");
        return;
    }
    clGetKernelWorkGroupInfo(
        kernel, device, CL_KERNEL_PRIVATE_MEM_SIZE, sizeof private_bytes, &private_bytes, NULL);
    fprintf(stderr, "PRIVATE %lu\nDONE\n", (unsigned long)private_bytes);
    clReleaseKernel(kernel);
    clReleaseProgram(program);
}

int main(int count, char **arguments)
{
    cl_platform_id platform;
    cl_device_id device;
    cl_int error;
    setvbuf(stderr, NULL, _IONBF, 0);
    if (count < 3 || clGetPlatformIDs(1, &platform, NULL) ||
        clGetDeviceIDs(platform, CL_DEVICE_TYPE_ALL, 1, &device, NULL)) {
        fprintf(stderr, "no OpenCL device\n");
        return 1;
    }
    cl_context context = clCreateContext(NULL, 1, &device, NULL, NULL, &error);
    if (error) {
        fprintf(stderr, "no context: error %d\n", error);
        return 1;
    }
    for (int i = 2; i < count; i++)
        build(context, device, arguments[1], arguments[i]);
    return 0;
}
