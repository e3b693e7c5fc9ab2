// Labels images on Android: Reader(model).label(image). Not run by shvit's tests.
// Gradle: implementation("com.microsoft.onnxruntime:onnxruntime-android:latest.release")
import ai.onnxruntime.*
import android.graphics.*
import java.io.File
import java.nio.ByteBuffer
import org.json.JSONObject

class Reader(model: File = File("best.onnx")) {
    private val session = OrtEnvironment.getEnvironment().createSession(model.path)
    private val facts = JSONObject(session.metadata.customMetadata.getValue("shvit"))

    init {
        val sample = facts.getJSONObject("sample")
        val known = scores(File(model.absoluteFile.parentFile, sample.getString("image")))
        val (numbers, expected) = listOf("classes", "scores").map(sample::getJSONArray)
        for (i in 0 until expected.length()) {
            check(kotlin.math.abs(known[numbers.getInt(i)] - expected.getDouble(i)) <= 0.01) { "self-check failed" }
        }
        println("self-check passed")
    }

    fun label(image: File): Pair<String, Float> = scores(image).withIndex().maxBy { it.value }
        .let { facts.getJSONArray("classes").getString(it.index) to it.value }

    private fun scores(image: File): FloatArray { // the EXIF orientation is not applied
        val stored = requireNotNull(BitmapFactory.decodeFile(image.path)) { "$image: cannot be read" }
        val (width, height) = stored.width to stored.height
        val rgb = Bitmap.createBitmap(width, height, Bitmap.Config.ARGB_8888)
        Canvas(rgb).apply { drawColor(Color.WHITE); drawBitmap(stored, 0f, 0f, null) } // transparency becomes white
        val colors = IntArray(width * height).also { rgb.getPixels(it, 0, width, 0, 0, width, height) }
        val pixels = ByteBuffer.allocateDirect(3 * colors.size)
        for ((i, color) in colors.withIndex()) for (c in 0..2) pixels.put(3 * i + c, (color shr 16 - 8 * c).toByte())
        val shape = longArrayOf(height.toLong(), width.toLong(), 3)
        OnnxTensor.createTensor(OrtEnvironment.getEnvironment(), pixels, shape, OnnxJavaType.UINT8).use { input ->
            session.run(mapOf("image" to input)).use { return it.get("scores").get().value as FloatArray }
        }
    }
}
