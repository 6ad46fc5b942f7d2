"""The one exception of the model server: a gRPC status code and the text that clients see."""

import grpc

_BY_NUMBER = {code.value[0]: code for code in grpc.StatusCode}


class ServingError(Exception):
    """A request or a load that failed, as TF Serving reports it.

    Attributes:
      code: the `grpc.StatusCode`; REST derives its HTTP status from it.
      message: the text, word for word as TF Serving writes it where clients match on it.
    """

    def __init__(self, code: grpc.StatusCode, message: str):
        super().__init__(message)
        self.code = code
        self.message = message

    @property
    def number(self) -> int:
        """The canonical number of the code, as `StatusProto.error_code` holds it."""
        return self.code.value[0]

    def __str__(self) -> str:
        return f"{self.code.name}: {self.message}"


def invalid(message: str) -> ServingError:
    """An INVALID_ARGUMENT."""
    return ServingError(grpc.StatusCode.INVALID_ARGUMENT, message)


def of_tensorflow(error) -> ServingError:
    """The `ServingError` of a `tf.errors.OpError`: the same code, the runtime's own text."""
    code = _BY_NUMBER.get(error.error_code, grpc.StatusCode.UNKNOWN)
    return ServingError(code, str(error.message))
