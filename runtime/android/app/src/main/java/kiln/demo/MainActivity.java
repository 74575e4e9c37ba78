package kiln.demo;

import android.app.Activity;
import android.content.res.AssetFileDescriptor;
import android.graphics.Bitmap;
import android.os.Bundle;
import android.widget.Button;
import android.widget.EditText;
import android.widget.ImageView;
import android.widget.LinearLayout;
import android.widget.ProgressBar;
import android.widget.TextView;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.util.Locale;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import kiln.KilnException;
import kiln.KilnRuntime;

/** A prompt, a bar, a picture, and a line that says what memory it takes. */
public final class MainActivity extends Activity {
    /** The asset with the compiled model. */
    private static final String MODEL = "model.kiln";

    /** One picture at a time, off the thread that draws. */
    private final ExecutorService worker = Executors.newSingleThreadExecutor();
    /** Set and closed on the worker; read anywhere. */
    private volatile KilnRuntime runtime;

    private EditText prompt;
    private Button make;
    private ProgressBar bar;
    private ImageView view;
    private TextView line;

    @Override
    protected void onCreate(Bundle state) {
        super.onCreate(state);
        prompt = new EditText(this);
        prompt.setText("a red heart");
        make = new Button(this);
        make.setText("Make a picture");
        make.setOnClickListener(clicked -> start());
        Button cancel = new Button(this);
        cancel.setText("Cancel");
        cancel.setOnClickListener(
                clicked -> {
                    KilnRuntime current = runtime;
                    if (current != null) {
                        current.cancel();
                    }
                });
        bar = new ProgressBar(this, null, android.R.attr.progressBarStyleHorizontal);
        line = new TextView(this);
        view = new ImageView(this);
        view.setAdjustViewBounds(true);
        LinearLayout column = new LinearLayout(this);
        column.setOrientation(LinearLayout.VERTICAL);
        column.setPadding(32, 32, 32, 32);
        for (android.view.View child :
                new android.view.View[] {prompt, make, cancel, bar, line, view}) {
            column.addView(child);
        }
        setContentView(column);
    }

    /** Makes the picture on the worker, which opens the model first if it is not open. */
    private void start() {
        KilnRuntime.Request request = new KilnRuntime.Request();
        request.prompt = prompt.getText().toString();
        request.preview = true;
        make.setEnabled(false);
        worker.execute(
                () -> {
                    try {
                        if (runtime == null) {
                            runtime = open();
                        }
                        KilnRuntime.Picture picture = runtime.generate(request, this::progress);
                        show(bitmap(picture.rgba, picture.width, picture.height));
                        say(memory());
                    } catch (KilnException | IOException error) {
                        say(error.getMessage());
                    } finally {
                        runOnUiThread(() -> make.setEnabled(true));
                    }
                });
    }

    private KilnRuntime open() throws IOException {
        try (AssetFileDescriptor asset = getAssets().openFd(MODEL)) {
            // Without a key: the package's own signature covers its assets.
            KilnRuntime.Options options = new KilnRuntime.Options();
            options.cacheFolder = getCodeCacheDir().getPath();
            return KilnRuntime.open(
                    asset.getParcelFileDescriptor().getFd(), asset.getStartOffset(),
                    asset.getLength(), options, this::progress);
        }
    }

    private boolean progress(
            KilnRuntime.Stage stage, int step, int of, double seconds, byte[] preview, int width,
            int height) {
        Bitmap small = preview == null ? null : bitmap(opaque(preview), width, height);
        runOnUiThread(
                () -> {
                    bar.setMax(Math.max(of, 1));
                    bar.setProgress(step);
                });
        if (small != null) {
            show(small);
        }
        say(stage.name().toLowerCase(Locale.ROOT) + " " + step + " of " + of + ", " + memory());
        return true;
    }

    private String memory() {
        KilnRuntime current = runtime;
        if (current == null) {
            return "";
        }
        KilnRuntime.Memory memory = current.memory();
        return String.format(
                Locale.ROOT, "%d MiB now, %d MiB at most, %d MiB planned", memory.process >> 20,
                memory.processPeak >> 20, memory.peak >> 20);
    }

    private void show(Bitmap bitmap) {
        runOnUiThread(() -> view.setImageBitmap(bitmap));
    }

    private void say(String text) {
        runOnUiThread(() -> line.setText(text));
    }

    private static Bitmap bitmap(byte[] rgba, int width, int height) {
        Bitmap bitmap = Bitmap.createBitmap(width, height, Bitmap.Config.ARGB_8888);
        bitmap.copyPixelsFromBuffer(ByteBuffer.wrap(rgba));
        return bitmap;
    }

    private static byte[] opaque(byte[] rgb) {
        byte[] rgba = new byte[rgb.length / 3 * 4];
        for (int pixel = 0; pixel < rgb.length / 3; pixel++) {
            System.arraycopy(rgb, pixel * 3, rgba, pixel * 4, 3);
            rgba[pixel * 4 + 3] = (byte) 0xff;
        }
        return rgba;
    }

    @Override
    public void onTrimMemory(int level) {
        super.onTrimMemory(level);
        KilnRuntime current = runtime;
        if (current != null) {
            current.trim();
        }
    }

    @Override
    protected void onDestroy() {
        super.onDestroy();
        KilnRuntime current = runtime;
        if (current != null) {
            current.cancel();
        }
        worker.execute(
                () -> {
                    if (runtime != null) {
                        runtime.close();
                        runtime = null;
                    }
                });
        worker.shutdown();
    }
}
