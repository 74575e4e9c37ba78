import java.nio.file.Files;
import java.nio.file.Path;
import java.util.concurrent.atomic.AtomicInteger;
import kiln.KilnException;
import kiln.KilnRuntime;

/**
 * Makes a picture on the desktop's JVM and writes its pixels:
 * {@code java Generate FILE.kiln OUT.rgba "a red heart" [STEPS [SEED [FROM.rgba WIDTH HEIGHT STRENGTH
 * [MASK.bytes]]]]}.
 *
 * <p>Then cancels one, trims, and makes the first one again, which must not differ.
 */
public final class Generate {
    public static void main(String[] args) throws Exception {
        KilnRuntime.Request request = new KilnRuntime.Request();
        request.prompt = args[2];
        request.steps = args.length > 3 ? Integer.parseInt(args[3]) : request.steps;
        request.seed = args.length > 4 ? Long.parseLong(args[4]) : request.seed;
        request.preview = true;
        if (args.length > 8) {
            request.initialRgba = Files.readAllBytes(Path.of(args[5]));
            request.initialWidth = Integer.parseInt(args[6]);
            request.initialHeight = Integer.parseInt(args[7]);
            request.strength = Double.parseDouble(args[8]);
            request.mask = args.length > 9 ? Files.readAllBytes(Path.of(args[9])) : null;
        }
        System.out.println("devices: " + String.join(", ", KilnRuntime.devices()));
        try (KilnRuntime runtime = KilnRuntime.open(args[0], null, null)) {
            AtomicInteger calls = new AtomicInteger();
            KilnRuntime.Picture picture =
                    runtime.generate(
                            request,
                            (stage, step, of, seconds, preview, width, height) -> {
                                calls.incrementAndGet();
                                System.out.printf(
                                        "%s %d of %d, preview %d x %d%n",
                                        stage, step, of, width, height);
                                require(preview == null || preview.length == width * height * 3);
                                return true;
                            });
            boolean whole = request.initialRgba == null;
            require(calls.get() == request.steps + 2 || !whole && calls.get() > 2);
            Files.write(Path.of(args[1]), picture.rgba);
            cancel(runtime, request);
            runtime.trim();
            require(runtime.memory().device == 0);
            byte[] again = runtime.generate(request, null).rgba;
            require(java.util.Arrays.equals(picture.rgba, again));
            KilnRuntime.Memory memory = runtime.memory();
            System.out.printf("process %d of %d bytes%n", memory.process, memory.budget);
            settings(runtime);
        }
        refuse(args[0]);
    }

    /** Cancels by the listener's answer, by the method, and by an exception. */
    private static void cancel(KilnRuntime runtime, KilnRuntime.Request request) {
        KilnRuntime.Listener no = (stage, step, of, seconds, preview, width, height) -> false;
        KilnRuntime.Listener method =
                (stage, step, of, seconds, preview, width, height) -> {
                    runtime.cancel();
                    return true;
                };
        for (KilnRuntime.Listener listener : new KilnRuntime.Listener[] {no, method}) {
            try {
                runtime.generate(request, listener);
                require(false);
            } catch (KilnException error) {
                require(error.status == KilnException.CANCELLED);
            }
        }
        try {
            runtime.generate(
                    request,
                    (stage, step, of, seconds, preview, width, height) -> {
                        throw new IllegalArgumentException("of the listener");
                    });
            require(false);
        } catch (IllegalArgumentException error) {
            require(error.getMessage().equals("of the listener"));
        }
    }

    /** Each setting reaches the library, which refuses values that no sampler takes. */
    private static void settings(KilnRuntime runtime) {
        KilnRuntime.Request[] requests = new KilnRuntime.Request[4];
        for (int index = 0; index < requests.length; index++) {
            requests[index] = new KilnRuntime.Request();
        }
        requests[0].spacing = "even";
        requests[1].eta = 2;
        requests[2].guidanceRescale = -1;
        requests[3].initialLatent = new float[3];
        String[] said = {"even", "eta is 2", "rescale is -1", "has 3"};
        for (int index = 0; index < requests.length; index++) {
            try {
                runtime.generate(requests[index], null);
                require(false);
            } catch (KilnException error) {
                System.out.println("refused: " + error.getMessage());
                require(error.getMessage().contains(said[index]));
            }
        }
    }

    /** What cannot be opened says why. */
    private static void refuse(String bundle) {
        String[][] wrong = {
            {"/no/such.kiln", null, null, "/no/such.kiln"},
            {bundle, "no such device \uD83D\uDE80", null, "no such device \uD83D\uDE80"},
            {bundle, null, "19bf44096984cdfe8541bac167dc3b96c85086aa30b6b6cb0c5c38ad703166e1",
                "is not signed"}
        };
        for (String[] row : wrong) {
            try {
                KilnRuntime.Options options = new KilnRuntime.Options();
                options.device = row[1];
                options.trustKey = row[2];
                KilnRuntime.open(row[0], options, null).close();
                require(false);
            } catch (KilnException error) {
                System.out.println("refused: " + error.getMessage());
                require(error.getMessage().contains(row[3]));
            }
        }
        try {
            KilnRuntime.Options options = new KilnRuntime.Options();
            options.budgetBytes = 1;
            KilnRuntime.open(bundle, options, null).close();
            require(false);
        } catch (KilnException error) {
            System.out.println("refused: " + error.getMessage());
            require(error.status == 4);
        }
    }

    private static void require(boolean holds) {
        if (!holds) {
            throw new AssertionError("a requirement does not hold");
        }
    }
}
