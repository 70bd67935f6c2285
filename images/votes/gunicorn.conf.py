"""How gunicorn serves the app. It reads this file by itself, from the directory it is started in."""

import signal

bind = "0.0.0.0:8080"
workers = 1  # votes in memory are the memory of one process
threads = 8
preload_app = True  # a wrong setting ends gunicorn; without this it would start the app again and again
keepalive = 0  # one connection a request, so that each reload of the page may reach another Pod
graceful_timeout = 3  # seconds that a request in flight has left after SIGTERM
worker_tmp_dir = "/dev/shm"  # writable even where the root file system is not


def post_worker_init(worker):
    """Let the app know of SIGTERM, and then let gunicorn do what it does."""
    stop = signal.getsignal(signal.SIGTERM)

    def tell_and_stop(number, frame):
        worker.wsgi.config["STOPPING"] = True
        stop(number, frame)

    signal.signal(signal.SIGTERM, tell_and_stop)
