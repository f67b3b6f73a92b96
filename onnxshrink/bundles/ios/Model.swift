// Add @@MODEL@@ to the target, and to the Podfile:
//   pod 'onnxruntime-objc', '>= @@RUNTIME@@'

import Foundation
import onnxruntime_objc

/// The model in the bundle. Inputs: @@INPUTS@@. Outputs: @@OUTPUTS@@.
final class Model {
    private let environment: ORTEnv
    private let session: ORTSession

    init() throws {
        guard let path = Bundle.main.path(forResource: "@@STEM@@", ofType: "onnx") else {
            throw CocoaError(.fileNoSuchFile)
        }
        environment = try ORTEnv(loggingLevel: .warning)
        session = try ORTSession(env: environment, modelPath: path, sessionOptions: nil)
    }

    /// The answers by name; `inputs` are bytes with their type and shape.
    func run(_ inputs: [String: (Data, ORTTensorElementDataType, [NSNumber])]) throws -> [String: Data] {
        let values = try inputs.mapValues { data, type, shape in
            try ORTValue(tensorData: NSMutableData(data: data), elementType: type, shape: shape)
        }
        let names = Set(try session.outputNames())
        let found = try session.run(withInputs: values, outputNames: names, runOptions: nil)
        return try found.mapValues { try $0.tensorData() as Data }
    }
}
