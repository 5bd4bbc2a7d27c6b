"""A joblib backend that runs on a cluster. joblib itself is imported when the backend is registered."""

__all__ = ["register_retinue"]


def register_retinue() -> None:
    """Make the backend known to joblib under the name "retinue".

        register_retinue()
        with joblib.parallel_config(backend="retinue"):
            search.fit(X, y)

    Raises ImportError if joblib is not installed.
    """
    try:
        from retinue.util.joblib.backend import register
    except ImportError as error:
        raise ImportError(f"joblib is needed for its backend: pip install joblib ({error})") from error
    register()
