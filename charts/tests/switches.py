"""Each value does what it says. t47, t48 and t49 are rows of the issue tracker."""
import json
import unittest

import yaml
from helm import CHART, render

LOCAL = {"local": {"enabled": True, "source": {"hostPath": {"path": "/srv/secrets", "type": "Directory"}}}}
RULES = [
    {"name": "shop-vaults", "namespaces": ["shop", "shop-*"], "backends": ["azure"], "addresses": ["shopkv.vault.azure.net"], "identities": ["1-1"]},
    {"name": "tools", "namespaces": ["tools"]},
]
BOTH = ["/var/run/secrets-store-csi-providers", "/etc/kubernetes/secrets-store-csi-providers"]


class Tracker(unittest.TestCase):
    def test_t47_old_and_new_directory_are_covered(self):
        objects = render()
        self.assertEqual(objects.arg("socket-dir"), BOTH)
        for index, directory in enumerate(BOTH):
            self.assertEqual(objects.volume(f"sockets-{index}"), {"hostPath": {"path": directory, "type": "DirectoryOrCreate"}})
            self.assertEqual(objects.mount(f"sockets-{index}"), {"name": f"sockets-{index}", "mountPath": directory})

    def test_t47_directories_can_be_chosen(self):
        objects = render({"socketDirs": ["/run/p"]})
        self.assertEqual(objects.arg("socket-dir"), ["/run/p"])
        self.assertEqual([one["name"] for one in objects.pod["volumes"]], ["sockets-0"])

    def test_t48_tolerates_all_taints(self):
        self.assertEqual(render().pod["tolerations"], [{"operator": "Exists"}])

    def test_t48_no_cpu_limit(self):
        resources = render().container["resources"]
        self.assertEqual(resources["limits"], {"memory": "128Mi"})
        self.assertEqual(resources["requests"], {"cpu": "10m", "memory": "32Mi"})

    def test_t48_no_host_network_unless_switched_on(self):
        pod = render().pod
        self.assertNotIn("hostNetwork", pod)
        self.assertNotIn("hostPID", pod)
        self.assertNotIn("hostIPC", pod)
        self.assertEqual(pod["dnsPolicy"], "ClusterFirst")
        pod = render({"hostNetwork": True}).pod
        self.assertIs(pod["hostNetwork"], True)
        self.assertEqual(pod["dnsPolicy"], "ClusterFirstWithHostNet")

    def test_t48_not_privileged_no_escalation_read_only_root_no_capability(self):
        self.assertEqual(
            render().container["securityContext"],
            {"privileged": False, "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}},
        )
        self.assertEqual(render().pod["securityContext"]["seccompProfile"], {"type": "RuntimeDefault"})

    def test_t48_socket_directory_is_not_chowned(self):
        self.assertNotIn("initContainers", render().pod)
        self.assertNotIn("fsGroup", render().pod["securityContext"])

    def test_t48_values_say_why_user_0(self):
        self.assertEqual(render().pod["securityContext"]["runAsUser"], 0)
        before = (CHART / "values.yaml").read_text().split("\nrunAsUser: 0")[0].splitlines()[-5:]
        self.assertIn("one reason: the socket directories belong to root", " ".join(before))

    def test_t48_user_65532_is_non_root(self):
        security = render({"runAsUser": 65532}).pod["securityContext"]
        self.assertEqual((security["runAsUser"], security["runAsGroup"], security["runAsNonRoot"]), (65532, 65532, True))
        self.assertIs(render().pod["securityContext"]["runAsNonRoot"], False)
        self.assertEqual(render({"runAsUser": 65532, "runAsGroup": 0}).pod["securityContext"]["runAsGroup"], 0)

    def test_t49_liveness_and_readiness_have_pages_of_their_own(self):
        container = render().container
        for probe, path in (("startupProbe", "/readyz"), ("readinessProbe", "/readyz"), ("livenessProbe", "/healthz")):
            self.assertEqual(container[probe]["httpGet"], {"path": path, "port": 8991})
            self.assertNotIn("exec", container[probe])
            self.assertGreater(container[probe]["timeoutSeconds"], 5, "the page itself takes up to 5 s")

    def test_t49_metrics_have_a_port(self):
        self.assertEqual(render().container["ports"], [{"name": "metrics", "containerPort": 8991, "protocol": "TCP"}])


class Rights(unittest.TestCase):
    def test_default_is_a_daemonset_and_an_account_without_rights(self):
        objects = render()
        self.assertEqual(objects.kinds(), ["DaemonSet", "ServiceAccount"])
        self.assertIs(objects.pod["automountServiceAccountToken"], False)
        self.assertIs(objects.one("ServiceAccount")["automountServiceAccountToken"], False)
        self.assertIs(objects.pod["enableServiceLinks"], False)

    def test_service_account(self):
        objects = render({"serviceAccount": {"name": "mine", "annotations": {"a": "b"}}})
        self.assertEqual(objects.pod["serviceAccountName"], "mine")
        self.assertEqual(objects.one("ServiceAccount", "mine")["metadata"]["annotations"], {"a": "b"})
        objects = render({"serviceAccount": {"create": False, "name": "theirs"}})
        self.assertEqual(objects.kinds(), ["DaemonSet"])
        self.assertEqual(objects.pod["serviceAccountName"], "theirs")
        self.assertEqual(render({"serviceAccount": {"create": False}}).pod["serviceAccountName"], "default")


class Identity(unittest.TestCase):
    def test_image(self):
        image = lambda values: render({"image": values}).container["image"]
        version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
        self.assertEqual(render().container["image"], f"keyferry/keyferry:{version}")
        self.assertEqual(image({"repository": "r.example/k", "tag": "t"}), "r.example/k:t")
        digest = "sha256:" + "a" * 64
        self.assertEqual(image({"tag": "t", "digest": digest}), f"keyferry/keyferry@{digest}")
        self.assertEqual(render({"image": {"pullPolicy": "Never"}}).container["imagePullPolicy"], "Never")
        self.assertEqual(render({"imagePullSecrets": [{"name": "r"}]}).pod["imagePullSecrets"], [{"name": "r"}])

    def test_names_and_namespace(self):
        self.assertEqual(render({"nameOverride": "ferry"}).one("DaemonSet", "keyferry")["spec"]["selector"]["matchLabels"]["app.kubernetes.io/name"], "ferry")
        self.assertTrue(render({"nameOverride": "x"}).one("DaemonSet", "keyferry-x"))
        self.assertTrue(render({"fullnameOverride": "f"}).one("DaemonSet", "f"))
        everywhere = {"namespaceOverride": "ours", "networkPolicy": {"enabled": True}, "podMonitor": {"enabled": True}, "policy": {"rules": RULES}}
        for (kind, _), one in render(everywhere).by_name.items():
            self.assertEqual(one["metadata"]["namespace"], "ours", kind)

    def test_selector_is_on_the_pod(self):
        daemonset = render({"podLabels": {"team": "x"}, "podAnnotations": {"note": "text"}}).one("DaemonSet")
        template = daemonset["spec"]["template"]["metadata"]
        self.assertLessEqual(daemonset["spec"]["selector"]["matchLabels"].items(), template["labels"].items())
        self.assertEqual(template["labels"]["team"], "x")
        self.assertEqual(template["annotations"]["note"], "text")


class Backends(unittest.TestCase):
    def test_azure_alone_is_the_default(self):
        self.assertEqual(render().arg("backends"), ["azure"])
        self.assertEqual(render().args[0], "serve")

    def test_azure_settings(self):
        objects = render({"azure": {"cloudName": "AzureChinaCloud", "constructPemChain": False, "writeCertAndKeyInSeparateFiles": True}})
        self.assertEqual(objects.arg("azure-cloud-name"), ["AzureChinaCloud"])
        self.assertEqual(objects.arg("azure-construct-pem-chain"), ["false"])
        self.assertEqual(objects.arg("azure-write-cert-and-key-in-separate-files"), ["true"])
        self.assertEqual(render().arg("azure-construct-pem-chain"), ["true"])
        self.assertEqual(render().arg("azure-environment-file"), [])

    def test_service_account_identity_is_the_one_switch_with_a_right(self):
        objects = render({"azure": {"serviceAccountIdentity": True}})
        self.assertIn("--azure-service-account-identity", objects.args)
        self.assertIs(objects.pod["automountServiceAccountToken"], True)
        self.assertEqual(objects.one("ClusterRole")["rules"], [{"apiGroups": [""], "resources": ["serviceaccounts"], "verbs": ["get"]}])
        binding = objects.one("ClusterRoleBinding")
        self.assertEqual(binding["roleRef"]["name"], "keyferry")
        self.assertEqual(binding["subjects"], [{"kind": "ServiceAccount", "name": "keyferry", "namespace": "kube-system"}])

    def test_identity_binding_brings_the_authority_and_no_token(self):
        objects = render({"azure": {"identityBinding": {"enabled": True, "url": "https://proxy.example", "sniName": "x.y"}}})
        self.assertEqual(objects.arg("azure-token-proxy-url"), ["https://proxy.example"])
        self.assertEqual(objects.arg("azure-sni-name"), ["x.y"])
        self.assertIs(objects.pod["automountServiceAccountToken"], False)
        self.assertEqual(objects.volume("cluster-authority")["configMap"]["name"], "kube-root-ca.crt")
        self.assertEqual(objects.mount("cluster-authority")["mountPath"], "/var/run/secrets/kubernetes.io/serviceaccount")
        plain = render({"azure": {"identityBinding": {"enabled": True}}})
        self.assertEqual(plain.arg("azure-token-proxy-url") + plain.arg("azure-sni-name"), [])
        both = render({"azure": {"identityBinding": {"enabled": True}, "serviceAccountIdentity": True}})
        self.assertNotIn("cluster-authority", [volume["name"] for volume in both.pod["volumes"]])

    def test_azure_environment_is_a_file(self):
        environment = {"keyVaultDNSSuffix": "vault.stack.example", "activeDirectoryEndpoint": "https://login.stack.example/"}
        objects = render({"azure": {"environment": environment}})
        (path,) = objects.arg("azure-environment-file")
        directory, name = path.rsplit("/", 1)
        self.assertEqual(objects.mount("azure-environment")["mountPath"], directory)
        config = objects.volume("azure-environment")["configMap"]["name"]
        self.assertEqual(json.loads(objects.one("ConfigMap", config)["data"][name]), environment)
        template = lambda values: render({"azure": {"environment": values}}).one("DaemonSet")["spec"]["template"]
        self.assertNotEqual(template(environment), template({"keyVaultDNSSuffix": "b"}), "a new file makes new pods")

    def test_local_alone(self):
        objects = render({"azure": {"enabled": False}, **LOCAL})
        self.assertEqual(objects.arg("backends"), ["local"])
        self.assertEqual([arg for arg in objects.args if "azure" in arg], [])

    def test_local_takes_any_volume(self):
        objects = render(LOCAL)
        self.assertEqual(objects.arg("backends"), ["azure,local"])
        self.assertEqual(objects.arg("local-root"), ["/local"])
        self.assertEqual(objects.mount("local"), {"name": "local", "mountPath": "/local", "readOnly": True})
        self.assertEqual(objects.volume("local"), LOCAL["local"]["source"])
        for source in ({"secret": {"secretName": "s"}}, {"configMap": {"name": "c"}}, {"persistentVolumeClaim": {"claimName": "p"}}):
            self.assertEqual(render({"local": {"enabled": True, "source": source}}).volume("local"), source)
        self.assertEqual(render().arg("local-root"), [])

    def test_replaces_azure_waits_for_its_socket(self):
        objects = render({"replaces": ["azure"], "azure": {"enabled": False}, "replacesWaitSeconds": 60})
        self.assertEqual(objects.arg("backends"), ["azure"])
        self.assertEqual(objects.arg("wait-for-socket"), ["60s"])
        self.assertEqual(objects.arg("socket-dir"), BOTH, "where the vendor's chart has it, in every version")
        startup = objects.container["startupProbe"]
        self.assertGreaterEqual(startup["failureThreshold"] * startup["periodSeconds"], 60 + 30, "the kubelet lets it wait")

    def test_replaces_takes_one_without_a_list(self):
        self.assertEqual(render({"replaces": "azure"}).by_name, render({"replaces": ["azure"]}).by_name)
        self.assertEqual(render({"replaces": ""}).by_name, render().by_name)

    def test_nothing_is_waited_for_by_default(self):
        self.assertEqual(render().arg("wait-for-socket"), [])
        self.assertEqual(render().container["startupProbe"]["failureThreshold"], 30)


class Server(unittest.TestCase):
    def test_listeners(self):
        objects = render({"metrics": {"address": "[::]", "port": 9001}, "admin": {"port": 9002}})
        self.assertEqual(objects.arg("metrics-addr"), ["[::]:9001"])
        self.assertEqual(objects.arg("admin-addr"), ["127.0.0.1:9002"])
        self.assertEqual(objects.container["ports"][0]["containerPort"], 9001)
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            self.assertEqual(objects.container[probe]["httpGet"]["port"], 9001)
        self.assertEqual(render().arg("metrics-addr"), ["0.0.0.0:8991"])
        self.assertEqual(render().arg("admin-addr"), ["127.0.0.1:8990"])

    def test_admin_listener_is_no_port(self):
        self.assertEqual([port["containerPort"] for port in render().container["ports"]], [8991])

    def test_host_network_declares_no_port(self):
        self.assertNotIn("ports", render({"hostNetwork": True}).container, "it would be one of the host: no second pod beside it")

    def test_limits(self):
        names = {"startMaxAge": "0", "repeatMaxAge": "5m", "pinnedMaxAge": "1h 30m", "lastGoodMaxAge": "30m", "lastGoodDefault": "5m", "cacheBytes": 33554432, "mountBudget": "100s", "maxAnswerBytes": 16777216}
        flags = ["start-max-age", "repeat-max-age", "pinned-max-age", "last-good-max-age", "last-good-default", "cache-bytes", "mount-budget", "max-answer-bytes"]
        objects = render({"limits": names})
        self.assertEqual([objects.arg(flag) for flag in flags], [[str(value)] for value in names.values()])
        self.assertEqual([render().arg(flag) for flag in flags], [[]] * 8)
        self.assertEqual(render({"limits": {"startMaxAge": 0}}).arg("start-max-age"), ["0"], "as --set gives it")

    def test_grace_fits_into_the_time_to_stop(self):
        objects = render({"graceSeconds": 45})
        self.assertEqual(objects.arg("grace"), ["45s"])
        self.assertEqual(objects.pod["terminationGracePeriodSeconds"], 55)

    def test_log(self):
        objects = render({"log": {"format": "text", "level": "debug"}})
        self.assertEqual((objects.arg("log-format"), objects.arg("log-level")), (["text"], ["debug"]))
        self.assertEqual(render().arg("log-format"), ["json"])

    def test_connect_to_and_extras(self):
        extra = {
            "connectTo": ["shopkv.vault.azure.net=10.0.0.1:443"],
            "extraArgs": ["--tries=2", "--connect-timeout=1s"],
            "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
            "extraVolumes": [{"name": "ca", "configMap": {"name": "ca"}}],
            "extraVolumeMounts": [{"name": "ca", "mountPath": "/ca"}],
        }
        objects = render(extra)
        self.assertEqual(objects.arg("connect-to"), extra["connectTo"])
        self.assertEqual(objects.args[-2:], extra["extraArgs"])
        self.assertEqual(objects.container["env"], extra["extraEnv"])
        self.assertEqual(objects.volume("ca"), {"configMap": {"name": "ca"}})
        self.assertEqual(objects.mount("ca"), {"name": "ca", "mountPath": "/ca"})


class Scheduling(unittest.TestCase):
    def test_update_is_a_second_pod_beside_the_first(self):
        spec = render().one("DaemonSet")["spec"]
        self.assertEqual(spec["updateStrategy"], {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}})
        self.assertEqual(spec["minReadySeconds"], 5)
        spec = render({"updateStrategy": {"rollingUpdate": {"maxSurge": "10%"}}, "minReadySeconds": 0}).one("DaemonSet")["spec"]
        self.assertEqual(spec["updateStrategy"]["rollingUpdate"], {"maxSurge": "10%", "maxUnavailable": 0})
        self.assertEqual(spec["minReadySeconds"], 0)
        spec = render({"updateStrategy": {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": "5%"}}}).one("DaemonSet")["spec"]
        self.assertEqual(spec["updateStrategy"]["rollingUpdate"], {"maxSurge": 0, "maxUnavailable": "5%"})
        self.assertEqual(render({"updateStrategy": {"type": "OnDelete"}}).one("DaemonSet")["spec"]["updateStrategy"], {"type": "OnDelete"})

    def test_no_disruption_budget(self):
        self.assertNotIn("PodDisruptionBudget", render().kinds(), "drains leave pods of a DaemonSet alone")

    def test_placement(self):
        pod = render().pod
        self.assertEqual(pod["priorityClassName"], "system-node-critical")
        self.assertEqual(pod["nodeSelector"], {"kubernetes.io/os": "linux"})
        terms = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
        self.assertEqual([one["values"] for one in terms[0]["matchExpressions"]], [["virtual-kubelet"], ["fargate"]])
        values = {
            "priorityClassName": "", "nodeSelector": {"pool": "a"}, "tolerations": [{"key": "k", "operator": "Exists"}],
            "affinity": {"nodeAffinity": None}, "dnsPolicy": "Default", "seLinuxOptions": {"type": "spc_t"},
            "resources": {"requests": {"cpu": "1m"}, "limits": {"memory": "1Gi"}},
        }
        pod = render(values).pod
        self.assertNotIn("priorityClassName", pod)
        self.assertEqual(pod["nodeSelector"], {"kubernetes.io/os": "linux", "pool": "a"})
        self.assertEqual(pod["tolerations"], values["tolerations"])
        self.assertNotIn("affinity", pod)
        self.assertEqual(pod["dnsPolicy"], "Default")
        self.assertEqual(pod["securityContext"]["seLinuxOptions"], {"type": "spc_t"})
        self.assertEqual(pod["containers"][0]["resources"], {"requests": {"cpu": "1m", "memory": "32Mi"}, "limits": {"memory": "1Gi"}})


class Observing(unittest.TestCase):
    def test_pod_monitor(self):
        monitor = render({"podMonitor": {"enabled": True, "labels": {"release": "p"}, "interval": "15s"}}).one("PodMonitor")
        self.assertEqual(monitor["metadata"]["labels"]["release"], "p")
        (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
        job = {"targetLabel": "job", "replacement": "keyferry"}
        self.assertEqual(endpoint, {"path": "/metrics", "interval": "15s", "honorLabels": True, "port": "metrics", "relabelings": [job]})
        self.assertEqual(monitor["spec"]["namespaceSelector"], {"matchNames": ["kube-system"]})
        labels = render().one("DaemonSet")["spec"]["template"]["metadata"]["labels"]
        self.assertLessEqual(monitor["spec"]["selector"]["matchLabels"].items(), labels.items())

    def test_pod_monitor_finds_pods_without_a_port(self):
        (endpoint,) = render({"podMonitor": {"enabled": True}, "hostNetwork": True}).one("PodMonitor")["spec"]["podMetricsEndpoints"]
        self.assertNotIn("port", endpoint)
        self.assertEqual([one["replacement"] for one in endpoint["relabelings"]], ["keyferry", "$1:8991", "[$1]:8991"])

    def test_alerts_are_those_of_the_file(self):
        rule = render({"prometheusRule": {"enabled": True, "labels": {"role": "a"}}}).one("PrometheusRule")
        self.assertEqual(rule["spec"], yaml.safe_load((CHART / "files/alerts.yaml").read_text()))
        self.assertEqual(rule["metadata"]["labels"]["role"], "a")

    def test_dashboard_is_the_file(self):
        config = render({"dashboard": {"enabled": True, "annotations": {"folder": "f"}, "labels": {"more": "m"}}}).one("ConfigMap", "keyferry-dashboard")
        self.assertEqual(json.loads(config["data"]["keyferry.json"]), json.loads((CHART / "files/dashboard.json").read_text()))
        self.assertEqual(config["metadata"]["labels"]["grafana_dashboard"], "1")
        self.assertEqual(config["metadata"]["labels"]["more"], "m")
        self.assertEqual(config["metadata"]["annotations"], {"folder": "f"})
        config = render({"dashboard": {"enabled": True, "labels": {"grafana_dashboard": "yes"}}}).one("ConfigMap", "keyferry-dashboard")
        self.assertEqual(config["metadata"]["labels"]["grafana_dashboard"], "yes")

    def test_network_policy(self):
        policy = render({"networkPolicy": {"enabled": True}}).one("NetworkPolicy")["spec"]
        self.assertEqual(policy["policyTypes"], ["Ingress", "Egress"])
        self.assertEqual(policy["ingress"], [{"ports": [{"protocol": "TCP", "port": 8991}]}])
        ports = lambda spec: [(port["protocol"], port["port"]) for rule in spec["egress"] for port in rule["ports"]]
        self.assertEqual(ports(policy), [("UDP", 53), ("TCP", 53), ("TCP", 443)])
        some = [{"namespaceSelector": {}}]
        block = [{"ipBlock": {"cidr": "10.0.0.0/8"}}]
        extra = [{"ports": [{"protocol": "TCP", "port": 3128}]}]
        full = render({"networkPolicy": {"enabled": True, "imds": True, "ingressFrom": some, "egressTo": block, "extraEgress": extra}})
        policy = full.one("NetworkPolicy")["spec"]
        self.assertEqual(policy["ingress"][0]["from"], some)
        self.assertEqual(policy["egress"][1]["to"], block)
        self.assertEqual(policy["egress"][2], {"ports": [{"protocol": "TCP", "port": 80}], "to": [{"ipBlock": {"cidr": "169.254.169.254/32"}}]})
        self.assertEqual(policy["egress"][3], extra[0])


class Policy(unittest.TestCase):
    def test_no_rules_no_file(self):
        self.assertEqual(render().arg("policy"), [])

    def test_rules_are_the_server_s_file(self):
        objects = render({"policy": {"rules": RULES}})
        (path,) = objects.arg("policy")
        directory, name = path.rsplit("/", 1)
        self.assertEqual(objects.mount("policy")["mountPath"], directory)
        config = objects.volume("policy")["configMap"]["name"]
        self.assertEqual(yaml.safe_load(objects.one("ConfigMap", config)["data"][name]), {"rules": RULES})

    def test_new_rules_make_no_new_pods(self):
        template = lambda rules: render({"policy": {"rules": rules}}).one("DaemonSet")["spec"]["template"]
        self.assertEqual(template(RULES), template(RULES[:1]), "the server reads its file anew")
        self.assertNotIn("subPath", render({"policy": {"rules": RULES}}).mount("policy"), "the kubelet would not renew it")

    def test_rules_alone_are_no_admission(self):
        self.assertNotIn("ValidatingAdmissionPolicy", render({"policy": {"rules": RULES}}).kinds())

    def test_admission(self):
        objects = render({"policy": {"rules": RULES, "admission": {"enabled": True}}})
        for name in ("keyferry-classes", "keyferry-volumes"):
            self.assertEqual(objects.one("ValidatingAdmissionPolicy", name)["spec"]["failurePolicy"], "Fail")
            binding = objects.one("ValidatingAdmissionPolicyBinding", name)["spec"]
            self.assertEqual(binding, {"policyName": name, "validationActions": ["Deny"]})

    def test_patterns_are_taken_word_for_word_but_for_the_star(self):
        objects = render({"policy": {"rules": [{"name": "a", "namespaces": ["shop-*"], "addresses": ["a.b+c*"]}], "admission": {"enabled": True}}})
        rules = objects.one("ValidatingAdmissionPolicy", "keyferry-classes")["spec"]["variables"][0]["expression"]
        self.assertIn(r'"namespaces": ["^shop-.*$"]', rules)
        self.assertIn(r'"addresses": ["(?i)^a\\.b\\+c.*$"]', rules)

    def test_admission_that_only_warns(self):
        soft = {"enabled": True, "failurePolicy": "Ignore", "actions": ["Warn", "Audit"]}
        objects = render({"policy": {"rules": RULES, "admission": soft}})
        for name in ("keyferry-classes", "keyferry-volumes"):
            self.assertEqual(objects.one("ValidatingAdmissionPolicy", name)["spec"]["failurePolicy"], "Ignore")
            self.assertEqual(objects.one("ValidatingAdmissionPolicyBinding", name)["spec"]["validationActions"], ["Warn", "Audit"])

    def test_many_rules_are_cut_into_expressions_that_the_api_server_takes(self):
        rules = [
            {"name": f"team-{i}", "namespaces": [f"team-{i}"], "addresses": [f"team{i}-{c}.vault.azure.net" for c in "abcdefgh"], "identities": ["2" * 36] * 1}
            for i in range(120)
        ]
        objects = render({"policy": {"rules": rules, "admission": {"enabled": True}}})
        variables = objects.one("ValidatingAdmissionPolicy", "keyferry-classes")["spec"]["variables"]
        self.assertEqual([one["name"] for one in variables[:4]], ["rules0", "rules1", "rules2", "rules"])
        self.assertEqual(variables[3]["expression"], "variables.rules0 + variables.rules1 + variables.rules2")
        self.assertLess(max(len(one["expression"]) for one in variables), 100_000)


class AsDependency(unittest.TestCase):
    def test_parents_may_switch_and_share(self):
        self.assertEqual(render({"enabled": True, "global": {"x": 1}}).by_name, render().by_name)
