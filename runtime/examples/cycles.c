/* Makes and cancels pictures, opens and closes sessions, and says whether memory grows:
 *
 *   cycles FILE.kiln CANCELS OPENS
 *
 * Every picture that is not cancelled must be the first one again. Prints the process's memory
 * after the first picture, after the cancels and after the opens. */

#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "kiln.h"

static void check(int right, const char *what) {
    if (!right) {
        fprintf(stderr, "%s: %s\n", what, kiln_last_error());
        exit(1);
    }
}

static KilnSession *open_session(const char *path) {
    KilnBundle *bundle = NULL;
    KilnSession *session = NULL;
    check(kiln_bundle_open(path, &bundle) == KILN_STATUS_OK, "open");
    check(kiln_session_create(bundle, NULL, NULL, NULL, &session) == KILN_STATUS_OK, "create");
    kiln_bundle_close(bundle);
    return session;
}

static double seconds_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static uint64_t process_bytes(const KilnSession *session) {
    KilnMemory memory;
    check(kiln_session_memory(session, &memory) == KILN_STATUS_OK, "memory");
    return memory.process_bytes;
}

/* FNV-1a of the pixels; 0 if cancelled. */
static uint64_t make(const KilnSession *session) {
    KilnRequest request;
    kiln_request_init(&request);
    request.prompt = "a red heart";
    request.steps = 2;
    KilnPicture *picture = NULL;
    KilnStatus status = kiln_session_generate(session, &request, NULL, NULL, &picture);
    if (status == KILN_STATUS_CANCELLED) {
        check(picture == NULL, "a cancelled picture");
        return 0;
    }
    check(status == KILN_STATUS_OK, "generate");
    size_t len_bytes =
        (size_t)kiln_picture_width(picture) * kiln_picture_height(picture) * 4;
    uint8_t *rgba = malloc(len_bytes);
    check(rgba != NULL && kiln_picture_rgba(picture, rgba, len_bytes) == KILN_STATUS_OK, "rgba");
    uint64_t hash = 0xcbf29ce484222325u;
    for (size_t index = 0; index < len_bytes; index++) {
        hash = (hash ^ rgba[index]) * 0x100000001b3u;
    }
    free(rgba);
    kiln_picture_free(picture);
    return hash;
}

struct canceller {
    const KilnSession *session;
    double after_seconds;
};

/* Cancels after a while; now and then also trims, in the middle of it all. */
static void *cancel_later(void *context) {
    const struct canceller *canceller = context;
    struct timespec pause;
    pause.tv_sec = (time_t)canceller->after_seconds;
    pause.tv_nsec = (long)((canceller->after_seconds - (double)pause.tv_sec) * 1e9);
    nanosleep(&pause, NULL);
    if (rand() % 4 == 0) {
        check(kiln_session_trim(canceller->session) == KILN_STATUS_OK, "trim");
    }
    check(kiln_session_cancel(canceller->session) == KILN_STATUS_OK, "cancel");
    return NULL;
}

static void print(const char *when, uint64_t bytes) {
    printf("%s: %.1f MiB\n", when, (double)bytes / 1048576.0);
    fflush(stdout);
}

int main(int argc, char **argv) {
    if (argc != 4) {
        fprintf(stderr, "usage: %s FILE.kiln CANCELS OPENS\n", argv[0]);
        return 2;
    }
    srand(1);
    KilnSession *session = open_session(argv[1]);
    check(make(session) != 0, "the first picture");
    double started = seconds_now();
    uint64_t expected = make(session);
    double takes = seconds_now() - started;
    print("after two pictures", process_bytes(session));

    int cancels = atoi(argv[2]), cancelled = 0, finished = 0;
    double latest = 0;
    for (int cycle = 0; cycle < cancels; cycle++) {
        struct canceller canceller = {session, takes * 1.1 * rand() / RAND_MAX};
        pthread_t thread;
        started = seconds_now();
        check(pthread_create(&thread, NULL, cancel_later, &canceller) == 0, "thread");
        uint64_t found = make(session);
        double late = seconds_now() - started - canceller.after_seconds;
        check(pthread_join(thread, NULL) == 0, "join");
        check(found == 0 || found == expected, "another picture");
        cancelled += found == 0;
        finished += found != 0;
        latest = found == 0 && late > latest ? late : latest;
        if ((cycle + 1) % 25 == 0) {
            print("after 25 more", process_bytes(session));
        }
    }
    check(make(session) == expected, "the picture after the cancels");
    printf("%d cancelled, %d finished; a picture takes %.3f s, a cancel at most %.3f s\n",
           cancelled, finished, takes, latest);
    print("after the cancels", process_bytes(session));
    check(kiln_session_trim(session) == KILN_STATUS_OK, "trim");
    print("trimmed", process_bytes(session));
    check(make(session) == expected, "the picture after a trim");
    print("and again", process_bytes(session));

    for (int cycle = 0, opens = atoi(argv[3]); cycle < opens; cycle++) {
        kiln_session_close(session);
        session = open_session(argv[1]);
        if (cycle % 5 == 4) {
            print("after 5 more opens", process_bytes(session));
        }
    }
    check(make(session) == expected, "the picture after the opens");
    print("after the opens", process_bytes(session));
    kiln_session_close(session);
    return 0;
}
