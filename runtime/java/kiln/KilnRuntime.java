package kiln;

/**
 * A compiled model on an OpenCL device: makes images from prompts.
 *
 * <p>A thin layer over the C interface ({@code kiln.h}). {@link #generate} takes long; call it on a
 * thread of its own. Any thread may call {@link #cancel}, {@link #trim} and {@link #memory} at any
 * time. Failures throw {@link KilnException}.
 */
public final class KilnRuntime implements AutoCloseable {
    static {
        System.loadLibrary("kiln_jni");
    }

    /** Stage of a call, in the order of {@code KilnStage}. */
    public enum Stage {
        /** Kernels are built. */
        LOAD,
        /** The prompt is encoded. */
        PROMPT,
        /** The sampler runs. */
        SAMPLE,
        /** The image is decoded. */
        DECODE
    }

    /** Receives progress, on the thread of the call. An exception ends the call. */
    public interface Listener {
        /**
         * @param stage the stage
         * @param step number of steps done
         * @param of number of steps in all; 0 if the stage has none
         * @param seconds seconds of the last step
         * @param preview preview as red, green and blue, row by row, of {@code width} x
         *     {@code height} pixels; null if there is none
         * @return whether to go on
         */
        boolean progress(
                Stage stage, int step, int of, double seconds, byte[] preview, int width,
                int height);
    }

    /** How a bundle is loaded. */
    public static final class Options {
        /** {@code auto}, an index, or a part of a name; null is {@code auto}. */
        public String device = null;
        /** Folder for compiled kernels; null keeps none. */
        public String cacheFolder = null;
        /** Largest planned peak of the bundle; 0 accepts any. */
        public long budgetBytes = 0;
        /**
         * Public key that must have signed the bundle, 64 hexadecimal digits; null accepts any
         * bundle: only for those that the caller has made.
         */
        public String trustKey = null;
        /** Width of the images, for a bundle with several sizes; 0 is that of its first. */
        public int width = 0;
        /** Height of the images; 0 is that of the bundle's first size. */
        public int height = 0;
        /** Whether the system's page cache keeps weights, in memory outside the budget. */
        public boolean pageCache = false;
    }

    /** A request for an image. */
    public static final class Request {
        /** The prompt. */
        public String prompt = "";
        /** The negative prompt. */
        public String negativePrompt = "";
        /** Seed of the noise. */
        public long seed = 0;
        /** Number of steps of the sampler; 0 is the model's default. */
        public int steps = 0;
        /** Scale of classifier-free guidance; 1 turns it off, NaN is the model's default. */
        public float guidance = Float.NaN;
        /** Name of the sampler; null is the model's default. */
        public String sampler = null;
        /** Spacing of the sampler's timesteps; null is the model's default. */
        public String spacing = null;
        /** Share, 0 to 1, by which the guided output's deviation is brought back. */
        public float guidanceRescale = 0;
        /** Noise that each step of {@code ddim} or {@code tcd} adds; NaN is the sampler's default. */
        public float eta = Float.NaN;
        /** Noise of variance 1 in place of the seed's, channels, rows, columns; null is none. */
        public float[] initialLatent = null;
        /** Whether progress has previews. */
        public boolean preview = false;
        /** Initial image, as {@link Picture#rgba}; null is none. */
        public byte[] initialRgba = null;
        /** Width of the initial image in pixels. */
        public int initialWidth = 0;
        /** Height of the initial image in pixels. */
        public int initialHeight = 0;
        /** Share of the steps that run on the initial image, over 0 to 1. */
        public double strength = 0.75;
        /**
         * The part of the initial image to repaint, a byte for each of its pixels: -1 (255) is
         * repainted, 0 is kept; null repaints all. A strength of 1 suits most masks.
         */
        public byte[] mask = null;
        /** Decoder, {@code full} or {@code tiny}; null is the full one if it is there. */
        public String decoder = null;
        /** Whether brackets in the prompts are text, not weights such as {@code (word:1.3)}. */
        public boolean plainPrompt = false;
        /**
         * Preset of steps that cost less and change the image, 0 to 3, for a bundle compiled with
         * {@code --fast}; 0 has none.
         */
        public int fast = 0;
        /** Share of the steps after which guidance begins; NaN is the preset's. */
        public float guidanceStart = Float.NaN;
        /** Share of the steps after which guidance ends; NaN is the preset's. */
        public float guidanceStop = Float.NaN;
        /** One step in so many computes the inner levels of the U-Net; 0 is the preset's. */
        public int cacheInterval = 0;
    }

    /** A finished image. */
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

    /** Memory in bytes, planned and measured; 0 if the system does not report it. */
    public static final class Memory {
        /** Planned peak of the process. */
        public final long peak;
        /** Budget. */
        public final long budget;
        /** Current allocations on the device. */
        public final long device;
        /** Current memory of the process. */
        public final long process;
        /** Peak memory of the process. */
        public final long processPeak;

        Memory(long[] bytes) {
            peak = bytes[0];
            budget = bytes[1];
            device = bytes[2];
            process = bytes[3];
            processPeak = bytes[4];
        }
    }

    /** Held while an image is made, so that closing waits for it. */
    private final Object making = new Object();
    /** Guards {@link #session} during short calls. */
    private final Object guard = new Object();
    /** The C object; 0 when closed. */
    private long session;

    private KilnRuntime(long session) {
        this.session = session;
    }

    /**
     * Sets the OpenCL library to use instead of a search. Call it first.
     *
     * @param path a file or a name that the linker knows
     */
    public static void useOpenCl(String path) {
        nativeUseOpenCl(path);
    }

    /** Names of all devices. */
    public static String[] devices() {
        return nativeDevices();
    }

    /**
     * Loads a bundle from a file.
     *
     * @param path the bundle
     * @param options how it is loaded; null is the defaults
     * @param listener receives the progress of building kernels; may be null
     */
    public static KilnRuntime open(String path, Options options, Listener listener) {
        return load(path, -1, 0, 0, options, listener);
    }

    /**
     * Loads a bundle that is a part of an open file, such as an Android asset. The caller may close
     * the descriptor afterwards.
     *
     * @param fd the descriptor
     * @param offsetBytes start of the bundle in the file
     * @param lenBytes length of the bundle
     * @param options as in the other {@code open}, like the parameter that follows
     */
    public static KilnRuntime open(
            int fd, long offsetBytes, long lenBytes, Options options, Listener listener) {
        return load(null, fd, offsetBytes, lenBytes, options, listener);
    }

    private static KilnRuntime load(
            String path, int fd, long offsetBytes, long lenBytes, Options options,
            Listener listener) {
        Options own = options == null ? new Options() : options;
        return new KilnRuntime(
                nativeOpen(
                        path, fd, offsetBytes, lenBytes, own.device, own.cacheFolder,
                        own.budgetBytes, own.trustKey, own.width, own.height, own.pageCache,
                        listener));
    }

    /**
     * Makes an image. Returns when it is done.
     *
     * @param listener receives progress; may be null
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
                            request.strength, request.mask, request.decoder, request.plainPrompt,
                            request.fast, request.guidanceStart, request.guidanceStop,
                            request.cacheInterval, request.spacing, request.guidanceRescale,
                            request.eta, request.initialLatent, listener, size);
            return new Picture(size[0], size[1], rgba);
        }
    }

    /** Cancels the current image, if there is one. */
    public void cancel() {
        synchronized (guard) {
            if (session != 0) {
                nativeCancel(session);
            }
        }
    }

    /**
     * Switches on a LoRA that {@code kiln lora} made for the bundle, in place of another one, for
     * later images.
     *
     * @param path its file; null switches it off
     * @param strength factor of its change; 1 is the change as it was trained
     */
    public void setLora(String path, float strength) {
        synchronized (making) {
            nativeSetLora(open(), path, strength);
        }
    }

    /** Releases memory that the next image allocates again. For {@code onTrimMemory}. */
    public void trim() {
        synchronized (guard) {
            if (session != 0) {
                nativeTrim(session);
            }
        }
    }

    /** Current memory. */
    public Memory memory() {
        synchronized (guard) {
            return new Memory(nativeMemory(open()));
        }
    }

    /** Cancels the current image, waits for its end, and frees everything. */
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
            String cacheFolder, long budgetBytes, String trustKey, int width, int height,
            boolean pageCache, Listener listener);

    private static native byte[] nativeGenerate(
            long session, String prompt, String negativePrompt, long seed, int steps,
            float guidance, String sampler, boolean preview, byte[] initialRgba, int initialWidth,
            int initialHeight, double strength, byte[] mask, String decoder, boolean plainPrompt,
            int fast, float guidanceStart, float guidanceStop, int cacheInterval,
            String spacing, float guidanceRescale, float eta, float[] initialLatent,
            Listener listener, int[] size);

    private static native void nativeCancel(long session);

    private static native void nativeSetLora(long session, String path, float strength);

    private static native void nativeTrim(long session);

    private static native long[] nativeMemory(long session);

    private static native void nativeClose(long session);
}
