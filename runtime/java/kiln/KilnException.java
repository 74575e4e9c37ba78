package kiln;

/** A failed call. The message has the reason. */
public final class KilnException extends RuntimeException {
    private static final long serialVersionUID = 1;

    /** {@link #status} of a cancelled image. */
    public static final int CANCELLED = 5;

    /** The value of {@code KilnStatus} in {@code kiln.h}. */
    public final int status;

    KilnException(int status, String message) {
        super(message);
        this.status = status;
    }
}
