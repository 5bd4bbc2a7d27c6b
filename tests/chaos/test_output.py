"""Workers' output on the driver's terminal: with its source, and without flooding it."""

from __future__ import annotations

from pathlib import Path

from tests.chaos.support import DriverProcess


def run(tmp_path: Path, base: str, script: str) -> tuple[str, str]:
    with DriverProcess(tmp_path, base, script) as driver:
        code = driver.wait()
        output, errors = driver.output(), driver.stderr()
        assert code == 0, errors
    return output, errors


def test_lines_come_with_their_source(base: str, tmp_path: Path) -> None:
    script = """
        @retinue.remote
        def speak():
            print("from a task")
            print("an error", file=sys.stderr)
            return os.getpid()

        @retinue.remote
        class Speaker:
            def speak(self):
                print("from an actor")
                return os.getpid()

        retinue.init(address="local", num_cpus=2)
        speaker = Speaker.remote()
        print("pids", *retinue.get([speak.remote(), speaker.speak.remote()]))
    """
    output, errors = run(tmp_path, base, script)
    task, actor = output.partition("pids ")[2].split()[:2]
    assert f"pid={task}) from a task" in output
    assert f"(Speaker pid={actor}) from an actor" in output
    assert f"pid={task}) an error" in errors


def test_the_last_words_of_a_killed_worker_come_too(base: str, tmp_path: Path) -> None:
    script = """
        @retinue.remote(max_retries=0)
        def die():
            print("last words")
            os.kill(os.getpid(), signal.SIGKILL)

        retinue.init(address="local", num_cpus=2)
        try:
            retinue.get(die.remote())
        except retinue.exceptions.WorkerCrashedError as error:
            assert "last words" in str(error)
    """
    output, _ = run(tmp_path, base, script)
    assert ") last words" in output


def test_a_hundred_thousand_lines_do_not_flood(base: str, tmp_path: Path) -> None:
    script = """
        @retinue.remote
        def flood():
            for number in range(100_000):
                print("line", number)
            print("the very last line")

        retinue.init(address="local", num_cpus=2)
        retinue.get(flood.remote())
    """
    output, _ = run(tmp_path, base, script)
    lines = output.splitlines()
    assert 10 < len(lines) < 2_000
    assert any("were not shown" in line for line in lines)


def test_a_repeated_line_is_folded(base: str, tmp_path: Path) -> None:
    script = """
        @retinue.remote
        def repeat():
            for _ in range(10_000):
                print("the same")
            print("another")

        retinue.init(address="local", num_cpus=2)
        retinue.get(repeat.remote())
    """
    output, _ = run(tmp_path, base, script)
    assert output.count("the same") < 50
    assert "[repeated" in output
    assert ") another" in output


def test_log_to_driver_can_be_off(base: str, tmp_path: Path) -> None:
    script = """
        @retinue.remote
        def speak():
            print("you do not see this")

        retinue.init(address="local", num_cpus=2, log_to_driver=False)
        retinue.get(speak.remote())
    """
    output, errors = run(tmp_path, base, script)
    assert "you do not see this" not in output + errors


def test_lines_of_other_nodes_come_too(base: str, tmp_path: Path) -> None:
    script = """
        from retinue.cluster_utils import Cluster

        @retinue.remote(resources={"x": 1})
        def speak(number):
            print("from another node", number)

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        cluster.connect()
        cluster.add_node(num_cpus=1, resources={"x": 1})
        retinue.get([speak.remote(number) for number in range(10)])
        cluster.shutdown()
    """
    output, _ = run(tmp_path, base, script)
    for number in range(10):
        assert f") from another node {number}\n" in output + "\n"
