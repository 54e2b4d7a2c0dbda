"""The method as pure functions of tensors: no gRPC, no protobuf, no model classes. Everything is float32."""
