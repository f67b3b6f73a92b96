// Put @@MODEL@@ into src/main/assets, and into build.gradle.kts:
//   implementation("com.microsoft.onnxruntime:onnxruntime-android:@@RUNTIME@@")  // or newer
//   android { androidResources { noCompress += "onnx" } }

import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtSession
import android.content.Context
import java.io.Closeable

/** The model as an asset. Inputs: @@INPUTS@@. Outputs: @@OUTPUTS@@. */
class Model(context: Context) : Closeable {
    private val environment = OrtEnvironment.getEnvironment()
    private val session: OrtSession =
        context.assets.open("@@MODEL@@").use { environment.createSession(it.readBytes()) }

    /** The answers by name, as Java arrays. */
    fun run(inputs: Map<String, Any>): Map<String, Any> {
        val tensors = inputs.mapValues { (_, array) -> OnnxTensor.createTensor(environment, array) }
        try {
            session.run(tensors).use { found -> return found.associate { it.key to it.value.value } }
        } finally {
            tensors.values.forEach { it.close() }
        }
    }

    override fun close() = session.close()
}
