"""An application for a config file."""

from retinue import serve


@serve.deployment
class Model:
    def __call__(self) -> str:
        return "model"


app = Model.bind()
