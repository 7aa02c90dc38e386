"""A stand-in for jetson-stats 4: what of its interface the kit uses."""

running = True
opened = 0


class JtopException(Exception):
    """The service does not run, or may not be used."""


class jtop:
    def start(self):
        global opened
        if not running:
            raise JtopException("The jtop.service is not active")
        opened += 1

    def ok(self, spin=False):
        return True

    @property
    def power(self):
        rails = {"VDD_CPU_GPU_CV": {"power": 1000}, "VDD_SOC": {"power": 1500}}
        return {"rail": rails, "tot": {"power": 6000, "name": "VDD_IN"}}

    def close(self):
        global opened
        opened -= 1
