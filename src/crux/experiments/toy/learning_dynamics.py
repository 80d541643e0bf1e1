"""x"""


def programs(config):
    from crux.experiments.toy.programs import over_densities

    return [over_densities(config)]


def result(config, trained):
    raise NotImplementedError
