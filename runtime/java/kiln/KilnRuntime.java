package kiln;

/**
 * A compiled model on an OpenCL device: makes pictures from prompts.
 *
 * <p>A thin layer over the C interface ({@code kiln.h}). {@link #generate} takes long and belongs
 * on a thread of its own; {@link #cancel}, {@link #trim} and {@link #memory} may be called from
 * any thread at any time. Failures are {@link KilnException}s.
 */
public final class KilnRuntime implements AutoCloseable {
    static {
        System.loadLibrary("kiln_jni");
    }

    /** What is being done. The order is that of {@code KilnStage}. */
    public enum Stage {
        /** Kernels are being built. */
        LOAD,
        /** The prompt is being encoded. */
        PROMPT,
        /** The sampler is at work. */
        SAMPLE,
        /** The picture is being decoded. */
        DECODE
    }

    /** Hears how far it is, on the thread that called. What it throws ends the call. */
    public interface Listener {
        /**
         * @param stage what is being done
         * @param step how much of it is
         * @param of of how much; 0 where there is nothing to count
         * @param seconds how long the last step took
         * @param preview a rough picture, red, green and blue, row by row, of {@code width} x
         *     {@code height} pixels; null if there is none
         * @return whether to go on
         */
        boolean progress(
                Stage stage, int step, int of, double seconds, byte[] preview, int width,
                int height);
    }

    /** What is asked for. */
    public static final class Request {
        /** What the picture shows. */
        public String prompt = "";
        /** What it does not. */
        public String negativePrompt = "";
        /** Seed of the noise. */
        public long seed = 0;
        /** Steps of the sampler. */
        public int steps = 20;
        /** Scale of guidance; 1 turns it off. */
        public float guidance = 7.5f;
        /** Name of the sampler; null is the first. */
        public String sampler = null;
        /** Whether progress comes with a preview. */
        public boolean preview = false;
        /** A picture to begin with, as {@link Picture#rgba}; null is none. */
        public byte[] initialRgba = null;
        /** Its width in pixels. */
        public int initialWidth = 0;
        /** Its height in pixels. */
        public int initialHeight = 0;
        /** How much of it is made anew: over 0 to 1. */
        public double strength = 0.75;
    }

    /** A finished picture. */
    public static final class Picture {
        /** Width in pixels. */
        public final int width;
        /** Height in pixels. */
        public final int height;
        /** Red, green, blue and 255, row by row: Android's {@code Bitmap.Config.ARGB_8888}. */
        public final byte[] rgba;

        Picture(int width, int height, byte[] rgba) {
            this.width = width;
            this.height = height;
            this.rgba = rgba;
        }
    }

    /** Memory in bytes, planned and measured; 0 where the system does not tell. */
    public static final class Memory {
        /** The most that the process takes, as planned. */
        public final long peak;
        /** What is allowed. */
        public final long budget;
        /** What is allocated on the device. */
        public final long device;
        /** What the process takes. */
        public final long process;
        /** The most that the process ever took. */
        public final long processPeak;

        Memory(long[] bytes) {
            peak = bytes[0];
            budget = bytes[1];
            device = bytes[2];
            process = bytes[3];
            processPeak = bytes[4];
        }
    }

    /** Held while a picture is made, so that closing waits for it. */
    private final Object making = new Object();
    /** Guards {@link #session} where a call is short. */
    private final Object guard = new Object();
    /** The C object; 0 when closed. */
    private long session;

    private KilnRuntime(long session) {
        this.session = session;
    }

    /**
     * Names the OpenCL library to use instead of searching for one. Call it first.
     *
     * @param path a file or a name that the linker knows
     */
    public static void useOpenCl(String path) {
        nativeUseOpenCl(path);
    }

    /** Names of the devices there are. */
    public static String[] devices() {
        return nativeDevices();
    }

    /**
     * Loads a bundle from a file.
     *
     * @param path the bundle
     * @param device {@code auto}, an index, or a part of a name; null is {@code auto}
     * @param cacheFolder where compiled kernels may be kept; null keeps none
     * @param budgetBytes the most memory that the bundle may plan to take; 0 asks only the bundle
     * @param listener hears of kernels being built; may be null
     */
    public static KilnRuntime open(
            String path, String device, String cacheFolder, long budgetBytes, Listener listener) {
        return new KilnRuntime(
                nativeOpen(path, -1, 0, 0, device, cacheFolder, budgetBytes, listener));
    }

    /**
     * Loads a bundle that is a part of an open file, as an Android asset is. The descriptor may be
     * closed afterwards.
     *
     * @param fd the descriptor
     * @param offsetBytes where the bundle starts
     * @param lenBytes its length
     * @param device as for the other {@code open}, and so are those that follow
     */
    public static KilnRuntime open(
            int fd, long offsetBytes, long lenBytes, String device, String cacheFolder,
            long budgetBytes, Listener listener) {
        return new KilnRuntime(
                nativeOpen(
                        null, fd, offsetBytes, lenBytes, device, cacheFolder, budgetBytes,
                        listener));
    }

    /**
     * Makes a picture; returns when it is done.
     *
     * @param listener hears how far it is; may be null
     * @throws KilnException with {@link KilnException#CANCELLED} after {@link #cancel}
     */
    public Picture generate(Request request, Listener listener) {
        synchronized (making) {
            int[] size = new int[2];
            byte[] rgba =
                    nativeGenerate(
                            open(), request.prompt, request.negativePrompt, request.seed,
                            request.steps, request.guidance, request.sampler, request.preview,
                            request.initialRgba, request.initialWidth, request.initialHeight,
                            request.strength, listener, size);
            return new Picture(size[0], size[1], rgba);
        }
    }

    /** Stops the picture that is being made, if one is. */
    public void cancel() {
        synchronized (guard) {
            if (session != 0) {
                nativeCancel(session);
            }
        }
    }

    /** Gives back what can be had again: for {@code onTrimMemory}. */
    public void trim() {
        synchronized (guard) {
            if (session != 0) {
                nativeTrim(session);
            }
        }
    }

    /** Memory now. */
    public Memory memory() {
        synchronized (guard) {
            return new Memory(nativeMemory(open()));
        }
    }

    /** Cancels, waits, and frees everything. */
    @Override
    public void close() {
        cancel();
        synchronized (making) {
            synchronized (guard) {
                nativeClose(session);
                session = 0;
            }
        }
    }

    private long open() {
        synchronized (guard) {
            if (session == 0) {
                throw new IllegalStateException("closed");
            }
            return session;
        }
    }

    private static native void nativeUseOpenCl(String path);

    private static native String[] nativeDevices();

    private static native long nativeOpen(
            String path, int fd, long offsetBytes, long lenBytes, String device,
            String cacheFolder, long budgetBytes, Listener listener);

    private static native byte[] nativeGenerate(
            long session, String prompt, String negativePrompt, long seed, int steps,
            float guidance, String sampler, boolean preview, byte[] initialRgba, int initialWidth,
            int initialHeight, double strength, Listener listener, int[] size);

    private static native void nativeCancel(long session);

    private static native void nativeTrim(long session);

    private static native long[] nativeMemory(long session);

    private static native void nativeClose(long session);
}
