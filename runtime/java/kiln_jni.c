/* The C interface for Java: each native method of kiln/KilnRuntime.java is one call of kiln.h.
 *
 * Texts cross as UTF-8 bytes, for Java's own encoding of them is another one. A listener that
 * throws ends the call, and its exception is the one that the caller sees. */

#include <jni.h>
#include <stdlib.h>
#include <string.h>

#include "kiln.h"

#define STAGES 4

/* What a call needs to tell a listener. */
struct listener {
    JNIEnv *env;
    jobject object;
    jmethodID method;
    jobjectArray stages;
};

/* A Java text from UTF-8; NULL with an exception pending. NewStringUTF takes another encoding. */
static jstring make_text(JNIEnv *env, const char *utf8) {
    jsize len = (jsize)strlen(utf8);
    jclass class = (*env)->FindClass(env, "java/lang/String");
    jmethodID make =
        class == NULL ? NULL : (*env)->GetMethodID(env, class, "<init>", "([BLjava/lang/String;)V");
    jbyteArray bytes = make == NULL ? NULL : (*env)->NewByteArray(env, len);
    jstring name = bytes == NULL ? NULL : (*env)->NewStringUTF(env, "UTF-8");
    if (name == NULL) {
        return NULL;
    }
    (*env)->SetByteArrayRegion(env, bytes, 0, len, (const jbyte *)utf8);
    jstring text = (jstring)(*env)->NewObject(env, class, make, bytes, name);
    (*env)->DeleteLocalRef(env, bytes);
    (*env)->DeleteLocalRef(env, name);
    (*env)->DeleteLocalRef(env, class);
    return text;
}

/* Throws the last error with its status. */
static void throw_status(JNIEnv *env, KilnStatus status) {
    if ((*env)->ExceptionCheck(env)) {
        return;
    }
    jclass class = (*env)->FindClass(env, "kiln/KilnException");
    if (class == NULL) {
        return;
    }
    jmethodID make = (*env)->GetMethodID(env, class, "<init>", "(ILjava/lang/String;)V");
    jstring message = make == NULL ? NULL : make_text(env, kiln_last_error());
    if (message != NULL) {
        jobject exception = (*env)->NewObject(env, class, make, (jint)status, message);
        if (exception != NULL) {
            (*env)->Throw(env, (jthrowable)exception);
        }
    }
}

static void throw_new(JNIEnv *env, const char *name, const char *message) {
    jclass class = (*env)->FindClass(env, name);
    if (class != NULL) {
        (*env)->ThrowNew(env, class, message);
    }
}

/* The text as UTF-8, to be freed; NULL if it is null or an exception is pending. */
static char *copy_text(JNIEnv *env, jstring text) {
    if (text == NULL || (*env)->ExceptionCheck(env)) {
        return NULL;
    }
    jclass class = (*env)->GetObjectClass(env, text);
    jmethodID encode = (*env)->GetMethodID(env, class, "getBytes", "(Ljava/lang/String;)[B");
    jstring name = encode == NULL ? NULL : (*env)->NewStringUTF(env, "UTF-8");
    if (name == NULL) {
        return NULL;
    }
    jbyteArray bytes = (jbyteArray)(*env)->CallObjectMethod(env, text, encode, name);
    if (bytes == NULL || (*env)->ExceptionCheck(env)) {
        return NULL;
    }
    jsize len = (*env)->GetArrayLength(env, bytes);
    char *copy = malloc((size_t)len + 1);
    if (copy == NULL) {
        throw_new(env, "java/lang/OutOfMemoryError", "a text");
        return NULL;
    }
    (*env)->GetByteArrayRegion(env, bytes, 0, len, (jbyte *)copy);
    copy[len] = '\0';
    return copy;
}

/* Fills `listener`; false if an exception is pending. */
static bool prepare(JNIEnv *env, jobject object, struct listener *listener) {
    listener->env = env;
    listener->object = object;
    if ((*env)->ExceptionCheck(env)) {
        return false;
    }
    if (object == NULL) {
        return true;
    }
    jclass class = (*env)->GetObjectClass(env, object);
    listener->method = (*env)->GetMethodID(env, class, "progress",
                                           "(Lkiln/KilnRuntime$Stage;IID[BII)Z");
    jclass stage = (*env)->FindClass(env, "kiln/KilnRuntime$Stage");
    if (listener->method == NULL || stage == NULL) {
        return false;
    }
    jmethodID values = (*env)->GetStaticMethodID(env, stage, "values", "()[Lkiln/KilnRuntime$Stage;");
    if (values == NULL) {
        return false;
    }
    listener->stages = (jobjectArray)(*env)->CallStaticObjectMethod(env, stage, values);
    return !(*env)->ExceptionCheck(env);
}

static bool tell(void *context, const KilnProgress *progress) {
    const struct listener *listener = context;
    JNIEnv *env = listener->env;
    if (listener->object == NULL || (int)progress->stage >= STAGES) {
        return true;
    }
    /* Nothing may be called while an exception is pending, and loading does not stop for it. */
    if ((*env)->ExceptionCheck(env) || (*env)->PushLocalFrame(env, 4) != 0) {
        return false;
    }
    jobject stage = (*env)->GetObjectArrayElement(env, listener->stages, (jsize)progress->stage);
    jbyteArray preview = NULL;
    if (progress->preview_rgb != NULL) {
        jsize len = (jsize)(progress->preview_width * progress->preview_height * 3);
        preview = (*env)->NewByteArray(env, len);
        if (preview != NULL) {
            (*env)->SetByteArrayRegion(env, preview, 0, len, (const jbyte *)progress->preview_rgb);
        }
    }
    jboolean more = JNI_FALSE;
    if (!(*env)->ExceptionCheck(env)) {
        more = (*env)->CallBooleanMethod(
            env, listener->object, listener->method, stage, (jint)progress->step,
            (jint)progress->of, (jdouble)progress->seconds, preview, (jint)progress->preview_width,
            (jint)progress->preview_height);
    }
    bool go_on = !(*env)->ExceptionCheck(env) && more;
    (*env)->PopLocalFrame(env, NULL);
    return go_on;
}

static KilnSession *session_of(jlong session) {
    return (KilnSession *)(intptr_t)session;
}

JNIEXPORT void JNICALL Java_kiln_KilnRuntime_nativeUseOpenCl(JNIEnv *env, jclass class,
                                                             jstring path) {
    (void)class;
    char *own = copy_text(env, path);
    if (!(*env)->ExceptionCheck(env)) {
        KilnStatus status = kiln_use_opencl(own);
        if (status != KILN_STATUS_OK) {
            throw_status(env, status);
        }
    }
    free(own);
}

JNIEXPORT jobjectArray JNICALL Java_kiln_KilnRuntime_nativeDevices(JNIEnv *env, jclass class) {
    (void)class;
    KilnDevices *devices = NULL;
    KilnStatus status = kiln_devices_list(&devices);
    if (status != KILN_STATUS_OK) {
        throw_status(env, status);
        return NULL;
    }
    jsize count = (jsize)kiln_devices_count(devices);
    jclass text = (*env)->FindClass(env, "java/lang/String");
    jobjectArray names = text == NULL ? NULL : (*env)->NewObjectArray(env, count, text, NULL);
    for (jsize index = 0; names != NULL && index < count; index++) {
        KilnDevice device;
        if (kiln_devices_get(devices, (uint32_t)index, &device) == KILN_STATUS_OK) {
            jstring name = make_text(env, device.name);
            if (name == NULL) {
                break;
            }
            (*env)->SetObjectArrayElement(env, names, index, name);
            (*env)->DeleteLocalRef(env, name);
        }
    }
    kiln_devices_free(devices);
    return names;
}

JNIEXPORT jlong JNICALL Java_kiln_KilnRuntime_nativeOpen(JNIEnv *env, jclass class, jstring path,
                                                         jint fd, jlong offset_bytes,
                                                         jlong len_bytes, jstring device,
                                                         jstring cache_folder, jlong budget_bytes,
                                                         jstring trust_key, jint width,
                                                         jint height, jboolean page_cache,
                                                         jobject object) {
    (void)class;
    char *own_path = copy_text(env, path);
    char *own_device = copy_text(env, device);
    char *own_folder = copy_text(env, cache_folder);
    char *own_key = copy_text(env, trust_key);
    KilnBundle *bundle = NULL;
    KilnSession *session = NULL;
    struct listener listener = {0};
    if (prepare(env, object, &listener)) {
        KilnStatus status =
            fd < 0 ? kiln_bundle_open(own_path, &bundle)
                   : kiln_bundle_open_fd(fd, (uint64_t)offset_bytes, (uint64_t)len_bytes, &bundle);
        if (status == KILN_STATUS_OK) {
            KilnSessionOptions options;
            kiln_session_options_init(&options);
            options.device = own_device;
            options.cache_folder = own_folder;
            options.budget_bytes = (uint64_t)budget_bytes;
            options.trust_key = own_key;
            options.width = width < 0 ? 0 : (uint32_t)width;
            options.height = height < 0 ? 0 : (uint32_t)height;
            options.page_cache = page_cache;
            status = kiln_session_create(bundle, &options, tell, &listener, &session);
        }
        if (status != KILN_STATUS_OK) {
            throw_status(env, status);
        }
    }
    kiln_bundle_close(bundle);
    free(own_path);
    free(own_device);
    free(own_folder);
    free(own_key);
    if ((*env)->ExceptionCheck(env)) {
        kiln_session_close(session);
        return 0;
    }
    return (jlong)(intptr_t)session;
}

/* The pixels of a picture, whose size goes into `size`. */
static jbyteArray pixels(JNIEnv *env, const KilnPicture *picture, jintArray size) {
    jint sides[2] = {(jint)kiln_picture_width(picture), (jint)kiln_picture_height(picture)};
    jsize len = sides[0] * sides[1] * 4;
    jbyteArray rgba = (*env)->NewByteArray(env, len);
    if (rgba == NULL) {
        return NULL;
    }
    jbyte *bytes = (*env)->GetByteArrayElements(env, rgba, NULL);
    if (bytes == NULL) {
        return NULL;
    }
    KilnStatus status = kiln_picture_rgba(picture, (uint8_t *)bytes, (size_t)len);
    (*env)->ReleaseByteArrayElements(env, rgba, bytes, 0);
    if (status != KILN_STATUS_OK) {
        throw_status(env, status);
        return NULL;
    }
    (*env)->SetIntArrayRegion(env, size, 0, 2, sides);
    return rgba;
}

/* A copy of the pixels of a picture to begin with, or of its mask, to be freed; NULL if there are none
   or an exception is pending, as where there are not as many bytes as the size says. */
static uint8_t *initial_pixels(JNIEnv *env, jbyteArray array, jint width, jint height,
                               jint pixel_bytes) {
    if (array == NULL || (*env)->ExceptionCheck(env)) {
        return NULL;
    }
    jsize len = (*env)->GetArrayLength(env, array);
    if (width <= 0 || height <= 0 || (jlong)width * height * pixel_bytes != (jlong)len) {
        throw_new(env, "java/lang/IllegalArgumentException", "the initial picture's size");
        return NULL;
    }
    jbyte *copy = malloc((size_t)len);
    if (copy == NULL) {
        throw_new(env, "java/lang/OutOfMemoryError", "the initial picture");
        return NULL;
    }
    (*env)->GetByteArrayRegion(env, array, 0, len, copy);
    return (uint8_t *)copy;
}

/* A copy of the values of a latent, to be freed, and their number; NULL if there are none or an
   exception is pending. */
static float *initial_values(JNIEnv *env, jfloatArray array, jsize *elems) {
    if (array == NULL || (*env)->ExceptionCheck(env)) {
        return NULL;
    }
    *elems = (*env)->GetArrayLength(env, array);
    float *copy = malloc(((size_t)*elems + 1) * sizeof *copy);
    if (copy == NULL) {
        throw_new(env, "java/lang/OutOfMemoryError", "the initial latent");
        return NULL;
    }
    (*env)->GetFloatArrayRegion(env, array, 0, *elems, copy);
    return copy;
}

JNIEXPORT jbyteArray JNICALL Java_kiln_KilnRuntime_nativeGenerate(
    JNIEnv *env, jclass class, jlong session, jstring prompt, jstring negative_prompt, jlong seed,
    jint steps, jfloat guidance, jstring sampler, jboolean preview, jbyteArray initial_rgba,
    jint initial_width, jint initial_height, jdouble strength, jbyteArray mask, jstring decoder,
    jboolean plain_prompt, jint fast, jfloat guidance_start, jfloat guidance_stop,
    jint cache_interval, jstring spacing, jfloat guidance_rescale, jfloat eta,
    jfloatArray initial_latent, jobject object, jintArray size) {
    (void)class;
    char *own_prompt = copy_text(env, prompt);
    char *own_negative = copy_text(env, negative_prompt);
    char *own_sampler = copy_text(env, sampler);
    char *own_decoder = copy_text(env, decoder);
    char *own_spacing = copy_text(env, spacing);
    jsize latent_elems = 0;
    float *latent = initial_values(env, initial_latent, &latent_elems);
    jbyteArray rgba = NULL;
    struct listener listener = {0};
    uint8_t *initial = initial_pixels(env, initial_rgba, initial_width, initial_height, 4);
    uint8_t *own_mask = initial_pixels(env, mask, initial_width, initial_height, 1);
    KilnImage image = {initial, (uint32_t)initial_width, (uint32_t)initial_height, strength};
    if (prepare(env, object, &listener)) {
        KilnRequest request;
        kiln_request_init(&request);
        request.prompt = own_prompt;
        request.negative_prompt = own_negative;
        request.seed = (uint64_t)seed;
        request.steps = steps < 0 ? 0 : (uint32_t)steps;
        request.guidance = guidance;
        request.sampler = own_sampler;
        request.decoder = own_decoder;
        request.plain_prompt = plain_prompt;
        request.fast = (uint32_t)fast;
        request.guidance_start = guidance_start;
        request.guidance_stop = guidance_stop;
        request.cache_interval = cache_interval < 0 ? 0 : (uint32_t)cache_interval;
        request.preview = preview;
        request.initial_image = initial == NULL ? NULL : &image;
        request.mask = own_mask;
        request.spacing = own_spacing;
        request.guidance_rescale = guidance_rescale;
        request.eta = eta;
        request.initial_latent = latent;
        request.latent_elems = (size_t)latent_elems;
        KilnPicture *picture = NULL;
        KilnStatus status =
            kiln_session_generate(session_of(session), &request, tell, &listener, &picture);
        if (status == KILN_STATUS_OK) {
            rgba = pixels(env, picture, size);
        } else {
            throw_status(env, status);
        }
        kiln_picture_free(picture);
    }
    free(initial);
    free(own_mask);
    free(own_prompt);
    free(own_negative);
    free(own_sampler);
    free(own_decoder);
    free(own_spacing);
    free(latent);
    return rgba;
}

JNIEXPORT void JNICALL Java_kiln_KilnRuntime_nativeCancel(JNIEnv *env, jclass class,
                                                          jlong session) {
    (void)env;
    (void)class;
    kiln_session_cancel(session_of(session));
}

JNIEXPORT void JNICALL Java_kiln_KilnRuntime_nativeSetLora(JNIEnv *env, jclass class, jlong session,
                                                           jstring path, jfloat strength) {
    (void)class;
    char *own_path = copy_text(env, path);
    if (!(*env)->ExceptionCheck(env)) {
        KilnStatus status = kiln_session_set_lora(session_of(session), own_path, strength);
        if (status != KILN_STATUS_OK) {
            throw_status(env, status);
        }
    }
    free(own_path);
}

JNIEXPORT void JNICALL Java_kiln_KilnRuntime_nativeTrim(JNIEnv *env, jclass class, jlong session) {
    (void)class;
    KilnStatus status = kiln_session_trim(session_of(session));
    if (status != KILN_STATUS_OK) {
        throw_status(env, status);
    }
}

JNIEXPORT jlongArray JNICALL Java_kiln_KilnRuntime_nativeMemory(JNIEnv *env, jclass class,
                                                                jlong session) {
    (void)class;
    KilnMemory memory;
    KilnStatus status = kiln_session_memory(session_of(session), &memory);
    if (status != KILN_STATUS_OK) {
        throw_status(env, status);
        return NULL;
    }
    jlong bytes[5] = {(jlong)memory.peak_bytes, (jlong)memory.budget_bytes,
                      (jlong)memory.device_bytes, (jlong)memory.process_bytes,
                      (jlong)memory.process_peak_bytes};
    jlongArray answer = (*env)->NewLongArray(env, 5);
    if (answer != NULL) {
        (*env)->SetLongArrayRegion(env, answer, 0, 5, bytes);
    }
    return answer;
}

JNIEXPORT void JNICALL Java_kiln_KilnRuntime_nativeClose(JNIEnv *env, jclass class,
                                                         jlong session) {
    (void)env;
    (void)class;
    kiln_session_close(session_of(session));
}
