package kiln;

/** A call that failed. The message says why. */
public final class KilnException extends RuntimeException {
    private static final long serialVersionUID = 1;

    /** {@link #status} of a picture that was cancelled. */
    public static final int CANCELLED = 5;

    /** The number of {@code KilnStatus} in {@code kiln.h}. */
    public final int status;

    KilnException(int status, String message) {
        super(message);
        this.status = status;
    }
}
